"""One model, many tasks: fine-tuning, prompting, low-rank adaptation and instructions."""
