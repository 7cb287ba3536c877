"""From likely to preferred: policies over answers, rewards for them, and three ways from one to the other."""
