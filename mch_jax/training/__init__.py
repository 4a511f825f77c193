"""Training: the run, its stages and what they share."""
