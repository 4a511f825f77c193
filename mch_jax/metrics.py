"""Retrieval measures, all from one table: items per Hamming distance, by relevance.

Rules, stated once:
  - an item counts once, at the nearest of its codes;
  - items at equal distance are in random order, and measures are exact expectations over it;
  - an empty ball has precision 0 and recall 0, and counts;
  - a query with no relevant item is left out of every mean;
  - recall divides by all relevant items of the database;
  - average precision divides by the relevant items that are found: all of them, or with a cut-off
    those among the first `cutoff`; it is 0 where none is;
  - F1 is computed for each query, then averaged.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8, UInt32

from mch_jax import codes as codes_lib
from mch_jax import pairs
from mch_jax.kernels import metric_kernels

Histogram = Int[np.ndarray, "m distances 2"]
AnyArray = Array | np.ndarray  # on the device or on the host
QUERIES_AT_ONCE = 64  # on the device


class RadiusMeasures(NamedTuple):
    """Means over queries: precision and recall within a ball, and whether it holds anything."""

    precision: float
    recall: float
    nonempty: float


def label_histogram(
    query_packed: UInt32[AnyArray, "m w"],
    packed: UInt32[AnyArray, "t w n"],
    query_labels: UInt32[AnyArray, "m lw"],
    labels: UInt32[AnyArray, "lw n"],
    num_bits: int,
    *,
    on_device: bool | None = None,
    threads: int | None = None,
) -> Histogram:
    """Returns how many items lie at each distance from each query, without and with a shared label.

    The query x database matrix never exists. Codes and labels come with the items last, so that
    every step is a loop along memory.

    Args:
      query_packed: packed codes of the queries.
      packed: packed codes of the items, equally many of each.
      query_labels: packed labels of the queries.
      labels: packed labels of the items.
      num_bits: code length q.
      on_device: on the accelerator; by default where there is one. The results are equal.
      threads: at most so many on the host; by default one a core.
    """
    if on_device is None:
        on_device = jax.default_backend() != "cpu"
    if on_device:
        counts = _device_histogram(query_packed, packed, query_labels, labels, num_bits)
        return np.asarray(counts).astype(np.int64).reshape(-1, num_bits + 1, 2)
    counts = np.zeros((len(query_packed), 2 * (num_bits + 1)), np.int64)
    queries, items = (_wide(np.asarray(x), 1) for x in (query_packed, packed))
    query_label_words, label_words = (
        _wide(np.asarray(query_labels), 1),
        _wide(np.asarray(labels), 0),
    )
    if queries.shape[1] == 1 and num_bits <= 32:  # half the bytes, twice the speed
        queries, items = queries.astype(np.uint32), np.ascontiguousarray(packed)

    def run(rows: slice) -> None:
        metric_kernels.label_histogram(
            queries[rows], items, query_label_words[rows], label_words, counts[rows]
        )

    in_threads(run, len(queries), threads)
    return counts.reshape(-1, num_bits + 1, 2)


def in_threads(run: Callable[[slice], None], size: int, threads: int | None = None) -> None:
    """Runs a function on slices of `size` queries in threads, by default one a core."""
    threads = min(threads or len(os.sched_getaffinity(0)), max(size, 1))
    if threads == 1:
        run(slice(0, size))
        return
    bounds = np.linspace(0, size, threads + 1).astype(int)
    with ThreadPoolExecutor(threads, thread_name_prefix="metrics") as pool:
        list(pool.map(run, map(slice, bounds[:-1], bounds[1:])))


def _wide(words: UInt32[np.ndarray, "..."], axis: int) -> np.ndarray:
    """Returns uint32 words along an axis as half as many uint64 words."""
    padding = [(0, 0)] * words.ndim
    padding[axis] = (0, words.shape[axis] % 2)
    pairs = np.moveaxis(np.pad(words, padding), axis, 0).astype(np.uint64)
    joined = pairs[::2] | pairs[1::2] << np.uint64(32)
    return np.ascontiguousarray(np.moveaxis(joined, 0, axis))


@functools.partial(jax.jit, static_argnames="num_bits")
def _device_histogram(
    query_packed: UInt32[AnyArray, "m w"],
    packed: UInt32[AnyArray, "t w n"],
    query_labels: UInt32[AnyArray, "m lw"],
    labels: UInt32[AnyArray, "lw n"],
    num_bits: int,
) -> Int32[Array, "m bins"]:
    """Returns the counts as sums of comparisons, without the atomic additions of a scatter.

    A row reduction of each bin: many operations, all of them parallel, and fused, so that neither
    distances nor comparisons are written to memory.
    """
    num_bins = 2 * (num_bits + 1)

    def one(query):
        code, label = query
        distances = [codes_lib.distance_to(code, words) for words in packed]
        distance = functools.reduce(jnp.minimum, distances)
        bins = distance * 2 + pairs.shares_label(label, labels)
        return codes_lib.counts_by_reduction(bins, jnp.ones(len(bins), jnp.int32), num_bins)

    return jax.lax.map(one, (query_packed, query_labels), batch_size=QUERIES_AT_ONCE)


def items_last(packed: UInt32[np.ndarray, "n t w"]) -> UInt32[np.ndarray, "t w n"]:
    """Returns codes in the layout of `label_histogram`."""
    return np.ascontiguousarray(np.transpose(packed, (1, 2, 0)))


def histogram(
    query_codes: UInt8[np.ndarray, "m bytes"],
    codes: UInt8[np.ndarray, "c bytes"],
    item: Int[np.ndarray, " c"],
    relevant: Bool[np.ndarray, "m n"],
    num_bits: int,
) -> Histogram:
    """Returns how many items lie at each distance from each query, irrelevant and relevant ones.

    Args:
      query_codes: one code a query, as in a codes file.
      codes: codes of the items, as in a codes file.
      item: the item of each code, in 0 .. n - 1; every item has at least one code.
      relevant: whether each item is relevant to each query.
      num_bits: code length q.

    Raises:
      ValueError: the arrays do not fit each other.
    """
    relevant = np.asarray(relevant, bool)
    num_items, width = relevant.shape[-1], -(-num_bits // 8)
    if query_codes.shape != (len(relevant), width) or codes.shape != (len(item), width):
        raise ValueError(
            f"query_codes {query_codes.shape} and codes {codes.shape} do not fit {len(relevant)} "
            f"queries, {len(item)} codes and {num_bits} bits; expected {width} bytes a code"
        )
    if not np.array_equal(np.unique(item), np.arange(num_items)):
        raise ValueError(f"item does not name every one of the {num_items} items of relevant")
    order = np.argsort(item, kind="stable")
    starts = np.searchsorted(item[order], np.arange(num_items))
    queries = codes_lib.from_bytes(query_codes, num_bits)
    packed = codes_lib.from_bytes(codes[order], num_bits)
    result = np.zeros((len(queries), num_bits + 1, 2), np.int64)
    for row, query in enumerate(queries):
        distance = np.bitwise_count(packed ^ query[None]).sum(1, dtype=np.int64)
        bins = np.minimum.reduceat(distance, starts) * 2 + relevant[row]
        result[row] = np.bincount(bins, minlength=2 * (num_bits + 1)).reshape(-1, 2)
    return result


def has_relevant(histogram: Histogram) -> Bool[np.ndarray, " m"]:
    """Returns which queries have at least one relevant item."""
    return histogram[:, :, 1].sum(1) > 0


def _before(counts: np.ndarray) -> np.ndarray:
    return counts.cumsum(-1) - counts


def _precision_sum(size, relevant, before, relevant_before, harmonic) -> np.ndarray:
    """Returns the expected sum of the precisions at the relevant ones of tied items.

    Within a group of n tied items, r of them relevant, with N items and R relevant ones before it,
    the j-th place holds a relevant item with probability r / n, and then on average
    1 + (j - 1) (r - 1) / (n - 1) relevant ones stand up to it. Summing (R + that) / (N + j) over
    places gives a harmonic number.
    """
    slope = np.where(size > 1, (relevant - 1) / np.maximum(size - 1, 1), 0)
    reciprocals = harmonic[before + size] - harmonic[before]
    places = size * slope + (relevant_before + 1 - slope * (before + 1)) * reciprocals
    return relevant / np.maximum(size, 1) * places


def average_precision(histogram: Histogram, cutoff: int | None = None) -> Float[np.ndarray, " m"]:
    """Returns the expected average precision of each query over random orders of ties.

    Where the cut-off splits a group of ties, the number of relevant items before it is
    hypergeometric, and the expectation runs over that number.

    Args:
      histogram: items per distance, by relevance.
      cutoff: look at the first so many items only; all of them when not given.
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
    """Returns mAP over queries that have a relevant item, ties averaged in closed form."""
    scores = average_precision(histogram, cutoff)[has_relevant(histogram)]
    return float(scores.mean()) if len(scores) else 0.0


def chance_map(histogram: Histogram) -> float:
    """Returns the expected mAP of a random ranking: all items tied."""
    return mean_average_precision(histogram.sum(1, keepdims=True))


def within_radius(histogram: Histogram, radius: int) -> RadiusMeasures:
    """Returns mean precision, mean recall and the share of non-empty balls of this radius."""
    histogram = histogram[has_relevant(histogram)]
    if not len(histogram):
        return RadiusMeasures(0.0, 0.0, 0.0)
    ball = histogram[:, : radius + 1].sum(1)
    size, found = ball.sum(1), ball[:, 1]
    precision = found / np.maximum(size, 1)
    recall = found / histogram[:, :, 1].sum(1)
    return RadiusMeasures(*(float(x.mean()) for x in (precision, recall, size > 0)))


def f1_at(histogram: Histogram, k: int) -> float:
    """Returns mean F1 of the k nearest items, those at the last distance in random order."""
    histogram = histogram[has_relevant(histogram)]
    if not len(histogram):
        return 0.0
    size, relevant = histogram.sum(2), histogram[:, :, 1]
    seen = np.clip(k - _before(size), 0, size)
    found = (relevant / np.maximum(size, 1) * seen).sum(1)
    # Harmonic mean of found / seen and found / relevant.
    return float((2 * found / (seen.sum(1) + relevant.sum(1))).mean())


def average_number_of_codes(item: Int[np.ndarray, " c"], num_items: int) -> float:
    """Returns ANHC: codes per image, an image's equal codes counted once."""
    return len(item) / num_items
