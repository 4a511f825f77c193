"""Compiled kernels of the index and of the evaluator (numba)."""
