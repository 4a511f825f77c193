"""Retrieval measures of a histogram: the number of items per Hamming distance, by relevance.

The measures follow these rules:
  - An item counts once, at the nearest of its codes.
  - Items at equal distance are in random order, and a measure is its exact expectation over it.
  - An empty ball has precision 0 and recall 0, and it counts in the means.
  - A query without any relevant item is left out of every mean.
  - Recall divides by all relevant items of the database.
  - Average precision divides by the number of relevant items found: all of them or, with a
    cut-off, those among the first `cutoff` items. It is 0 where none is found.
  - F1 is computed for each query and then averaged.

`mch_jax.histograms` computes the histogram from labels, also on an accelerator. This module does
not import JAX.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt32, UInt64

from mch_jax.kernels import histogram as kernels
from mch_jax.kernels.threads import in_threads

Histogram = Int[np.ndarray, "m distances 2"]


class RadiusMeasures(NamedTuple):
    """Means over the queries for the ball of one Hamming radius around each query's code.

    Attributes:
      precision: Mean share of relevant items among those in the ball.
      recall: Mean share of the relevant items that lie in the ball.
      nonempty: Share of the queries whose ball holds an item.
    """

    precision: float
    recall: float
    nonempty: float


def histogram(
    query_codes: UInt8[np.ndarray, "m bytes"],
    codes: UInt8[np.ndarray, "c bytes"],
    item: Int[np.ndarray, " c"],
    relevant: Bool[np.ndarray, "m n"],
    num_bits: int,
    *,
    threads: int | None = None,
) -> Histogram:
    """Returns the number of items at each distance from each query: irrelevant, then relevant ones.

    Args:
      query_codes: One code per query, as in a codes file.
      codes: Codes of the items, as in a codes file.
      item: Item of each code, from 0 to n - 1. Every item has at least one code.
      relevant: True where an item is relevant to a query.
      num_bits: Code length q.
      threads: Maximum number of threads. Defaults to one per core.

    Raises:
      ValueError: The arrays do not fit each other.
    """
    relevant, item = np.ascontiguousarray(relevant, bool), np.asarray(item)
    num_items, width = relevant.shape[-1], -(-num_bits // 8)
    if query_codes.shape != (len(relevant), width) or codes.shape != (len(item), width):
        raise ValueError(
            f"query_codes {query_codes.shape} and codes {codes.shape} do not fit {len(relevant)} "
            f"queries, {len(item)} codes and {num_bits} bits; expected {width} bytes per code"
        )
    in_range = not len(item) or (item.min() >= 0 and item.max() < num_items)
    counts = np.bincount(item, minlength=num_items) if in_range else np.zeros(1, np.int64)
    if len(counts) and not counts.all():
        raise ValueError(f"item does not name every one of the {num_items} items of relevant")
    if (item[1:] < item[:-1]).any():
        codes = codes[np.argsort(item, kind="stable")]
    starts = np.cumsum(counts) - counts
    queries, words = _words(query_codes), _words(codes).T
    result = np.zeros((len(queries), 2 * (num_bits + 1)), np.int64)
    for number in np.unique(counts):  # padding all items to the largest number would take longer
        items = np.flatnonzero(counts == number)
        rows = starts[items][None] + np.arange(number)[:, None]
        packed = np.ascontiguousarray(words[:, rows].swapaxes(0, 1))
        columns = items if len(items) < num_items else items[:0]

        def run(part: slice, packed=packed, columns=columns) -> None:
            kernels.relevance_histogram(
                queries[part], packed, relevant[part].view(np.uint8), columns, result[part]
            )

        in_threads(run, len(queries), threads)
    return result.reshape(-1, num_bits + 1, 2)


def _words(
    codes: UInt8[np.ndarray, "c bytes"],
) -> UInt32[np.ndarray, "c w"] | UInt64[np.ndarray, "c w"]:
    """Returns codes as words padded with zeros: uint32 for up to 32 bits, uint64 for more."""
    word = np.dtype("<u4") if codes.shape[1] <= 4 else np.dtype("<u8")
    wide = np.zeros((len(codes), -(-codes.shape[1] // word.itemsize) * word.itemsize), np.uint8)
    wide[:, : codes.shape[1]] = codes
    return wide.view(word)


def has_relevant(histogram: Histogram) -> Bool[np.ndarray, " m"]:
    """Returns True for each query that has at least one relevant item."""
    return histogram[:, :, 1].sum(1) > 0


def _before(counts: np.ndarray) -> np.ndarray:
    """Returns the sum of the counts at smaller distances."""
    return counts.cumsum(-1) - counts


def _precision_sum(size, relevant, before, relevant_before, harmonic) -> np.ndarray:
    """Returns the expected sum of the precisions at the relevant items of a group of ties.

    Let the group have n items, r of them relevant, with N items and R relevant ones ranked before
    it. Its j-th rank holds a relevant item with probability r / n, and the number of relevant items
    in the group up to that rank is then 1 + (j - 1) (r - 1) / (n - 1) on average. The sum over j of
    (R + that number) / (N + j) is a difference of harmonic numbers.

    Args:
      size: Number of items n of each group.
      relevant: Number of relevant items r of each group.
      before: Number of items N ranked before each group.
      relevant_before: Number of relevant items R ranked before each group.
      harmonic: Harmonic numbers H(0), H(1), ..., up to the number of items.
    """
    slope = np.where(size > 1, (relevant - 1) / np.maximum(size - 1, 1), 0)
    reciprocals = harmonic[before + size] - harmonic[before]
    ranks = size * slope + (relevant_before + 1 - slope * (before + 1)) * reciprocals
    return relevant / np.maximum(size, 1) * ranks


def average_precision(histogram: Histogram, cutoff: int | None = None) -> Float[np.ndarray, " m"]:
    """Returns the expected average precision of each query over all orders of ties.

    Where the cut-off divides a group of ties, the number of relevant items before it has a
    hypergeometric distribution, and the expectation is taken over that number.

    Args:
      histogram: Number of items per distance, by relevance.
      cutoff: Number of first items to rank. Defaults to all items.
    """
    relevant, size = histogram[:, :, 1].astype(np.int64), histogram.sum(2)
    before, relevant_before = _before(size), _before(relevant)
    numbers = np.arange(1, size.sum(1).max(initial=0) + 1)
    harmonic = np.concatenate([[0], np.cumsum(1 / numbers)])
    cutoff = len(numbers) if cutoff is None else cutoff
    whole = before + size <= cutoff
    sums = _precision_sum(size, relevant, before, relevant_before, harmonic)
    precisions, found = (sums * whole).sum(1), (relevant * whole).sum(1)
    scores = precisions / np.maximum(found, 1)
    log_factorial = np.concatenate([[0], np.cumsum(np.log(numbers))])

    def log_choose(n, k):
        return log_factorial[n] - log_factorial[k] - log_factorial[n - k]

    for query, split in np.argwhere((before < cutoff) & ~whole):
        n, r, seen = (int(x[query, split]) for x in (size, relevant, cutoff - before))
        k = np.arange(max(0, seen - (n - r)), min(r, seen) + 1)
        log_prob = log_choose(r, k) + log_choose(n - r, seen - k) - log_choose(n, seen)
        sums = _precision_sum(seen, k, before[query, split], found[query], harmonic)
        expected = (precisions[query] + sums) / np.maximum(found[query] + k, 1)
        scores[query] = np.exp(log_prob) @ expected
    return scores


def mean_average_precision(histogram: Histogram, cutoff: int | None = None) -> float:
    """Returns mAP over the queries that have a relevant item, ties averaged in closed form.

    Args:
      histogram: Number of items per distance, by relevance.
      cutoff: Number of first items to rank. Defaults to all items.
    """
    scores = average_precision(histogram, cutoff)[has_relevant(histogram)]
    return float(scores.mean()) if len(scores) else 0.0


def chance_map(histogram: Histogram) -> float:
    """Returns the expected mAP of a random ranking: that of a histogram in which all items tie."""
    return mean_average_precision(histogram.sum(1, keepdims=True))


def within_radius(histogram: Histogram, radius: int) -> RadiusMeasures:
    """Returns the measures of the items within a Hamming radius of each query."""
    histogram = histogram[has_relevant(histogram)]
    if not len(histogram):
        return RadiusMeasures(0.0, 0.0, 0.0)
    ball = histogram[:, : radius + 1].sum(1)
    size, found = ball.sum(1), ball[:, 1]
    precision = found / np.maximum(size, 1)
    recall = found / histogram[:, :, 1].sum(1)
    return RadiusMeasures(*(float(x.mean()) for x in (precision, recall, size > 0)))


def scores(histogram: Histogram) -> Float[np.ndarray, "m 3"]:
    """Returns average precision, and precision and recall within radius 0, of each query.

    Their means are `mean_average_precision` and those of `within_radius`.

    Args:
      histogram: Number of items per distance, by relevance. Each query has a relevant item.
    """
    found, size = histogram[:, 0, 1], histogram[:, 0].sum(1)
    precision, recall = found / np.maximum(size, 1), found / histogram[:, :, 1].sum(1)
    return np.stack([average_precision(histogram), precision, recall], 1)


def f1_at(histogram: Histogram, k: int) -> float:
    """Returns the mean F1 of the k nearest items, those at the last distance in random order."""
    histogram = histogram[has_relevant(histogram)]
    if not len(histogram):
        return 0.0
    size, relevant = histogram.sum(2), histogram[:, :, 1]
    seen = np.clip(k - _before(size), 0, size)
    found = (relevant / np.maximum(size, 1) * seen).sum(1)
    # Harmonic mean of found / seen and found / relevant.
    return float((2 * found / (seen.sum(1) + relevant.sum(1))).mean())


def average_number_of_codes(item: Int[np.ndarray, " c"], num_items: int) -> float:
    """Returns ANHC, the number of codes per image, with an image's equal codes counted once."""
    return len(item) / num_items
