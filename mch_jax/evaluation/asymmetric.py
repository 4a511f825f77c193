"""Ranking by asymmetric distance: the query has real values, the database has codes.

The asymmetric distance between a query and a code is the sum of |logit| over the bits in which the
query's code differs from it (Gordo et al., "Asymmetric Distances for Binary Embeddings", TPAMI
2014). An item counts at its nearest code, and items at equal distance are in random order, as in
`mch_jax.metrics`.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, UInt8

from mch_jax import metrics
from mch_jax.files.codes_file import CodeFile

_BLOCK = 64  # queries that are compared with the database at a time


def signs(codes: UInt8[np.ndarray, "c bytes"], num_bits: int) -> Float[np.ndarray, "c q"]:
    """Returns the codes of a codes file as -1 and +1."""
    return np.unpackbits(codes, axis=1, count=num_bits, bitorder="little") * 2.0 - 1


def distances(
    logits: Float[np.ndarray, "m t q"], signs: Float[np.ndarray, "c q"]
) -> Float[np.ndarray, "m c"]:
    """Returns the asymmetric distance between each query, at its nearest code, and each code.

    Products in float64 are exact for float32 logits of similar size, so that equal sums tie.

    Args:
      logits: Logits of one or several codes of each query.
      signs: Codes as -1 and +1.
    """
    logits = logits.astype(np.float64)
    return ((np.abs(logits).sum(2)[..., None] - logits @ signs.T) / 2).min(1)


def average_precision(
    logits: Float[np.ndarray, "m t q"],
    codes: UInt8[np.ndarray, "c bytes"],
    item: Int[np.ndarray, " c"],
    query_labels: UInt8[np.ndarray, "m classes"],
    labels: UInt8[np.ndarray, "n classes"],
) -> Float[np.ndarray, " counted"]:
    """Returns the average precision of each query that has a relevant item.

    Args:
      logits: Logits of one or several codes of each query.
      codes: Codes of the database.
      item: Item of each code, ascending; every item has one.
      query_labels: Multi-hot labels of the queries.
      labels: Multi-hot labels of the items.
    """
    distinct, code = np.unique(codes, axis=0, return_inverse=True)
    code, starts = code.reshape(-1), np.searchsorted(item, np.arange(len(labels)))
    signed = signs(distinct, logits.shape[2])

    def of_block(rows: slice) -> np.ndarray:
        return np.minimum.reduceat(distances(logits[rows], signed)[:, code], starts, axis=1)

    return ranked(of_block, query_labels, labels)


def mean_average_precision(
    logits: Float[np.ndarray, "m t q"], query: CodeFile, database: CodeFile
) -> float:
    """Returns mAP of ranking by asymmetric distance over the queries with a relevant item.

    Args:
      logits: Logits of one or several codes of each query.
      query: Codes file of the queries, for their labels.
      database: Codes file of the database.
    """
    scores = average_precision(logits, database.codes, database.item, query.labels, database.labels)
    return float(scores.mean()) if len(scores) else 0.0


def ranked(
    distance: Callable[[slice], Float[np.ndarray, "b n"]],
    query_labels: UInt8[np.ndarray, "m classes"],
    labels: UInt8[np.ndarray, "n classes"],
) -> Float[np.ndarray, " counted"]:
    """Returns the average precision of each query that has a relevant item, for any ranking.

    Args:
      distance: Returns the distances of all items from a block of queries; small ones rank first.
      query_labels: Multi-hot labels of the queries.
      labels: Multi-hot labels of the items.
    """
    classes, scores = labels.T.astype(np.float32), []
    for first in range(0, len(query_labels), _BLOCK):
        rows = slice(first, first + _BLOCK)
        relevant = query_labels[rows].astype(np.float32) @ classes > 0
        for row, hit in zip(distance(rows), relevant, strict=True):
            if hit.any():
                scores.append(_average_precision(row, hit))
    return np.array(scores)


def _average_precision(distance: np.ndarray, relevant: np.ndarray) -> float:
    """Returns the expected average precision of one ranking over all orders of ties."""
    _, group = np.unique(distance, return_inverse=True)
    counts = np.bincount(group * 2 + relevant, minlength=2 * (int(group.max()) + 1))
    return float(metrics.average_precision(counts.reshape(1, -1, 2))[0])
