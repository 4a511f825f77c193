"""Files: whole files, codes files, checkpoints and weights."""
