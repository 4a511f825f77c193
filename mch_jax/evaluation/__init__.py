"""Measures of a finished run, and where its results come from.

evaluate: every measure of one choice of codes.
controls: choices of codes without the agent, to compare it with.
results: results.json, written, read and verified.
provenance: versions, device, commit and hashes behind a result.
measures: the table of measures: their keys, titles and meanings.
sweep: measures over the crop ratio and the keep threshold of one run.
comparison: means, intervals and differences over the runs of a grid.
"""

from mch_jax.evaluation.evaluate import f1_bucket, histogram, measure
from mch_jax.evaluation.results import (
    measure_run,
    read_results,
    text_table,
    verify,
    write_results,
)

__all__ = [
    "f1_bucket",
    "histogram",
    "measure",
    "measure_run",
    "read_results",
    "text_table",
    "verify",
    "write_results",
]
