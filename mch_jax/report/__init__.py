"""The report of a run: an HTML page and its figures."""

from mch_jax.report.page import (
    MEASURES,
    SCHEMES,
    legend,
    pair_order,
    pick_queries,
    power,
    read,
    style,
    write,
)

__all__ = [
    "MEASURES",
    "SCHEMES",
    "legend",
    "pair_order",
    "pick_queries",
    "power",
    "read",
    "style",
    "write",
]
