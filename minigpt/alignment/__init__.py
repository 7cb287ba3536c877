"""From likely to preferred: reward models, REINFORCE, PPO, DPO, and the exact optimum."""
