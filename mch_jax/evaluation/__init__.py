"""Measures of a finished run, and where its results come from."""
