"""Benchmarks of speed and memory against peers and the machine's limits: `python -m bench`."""
