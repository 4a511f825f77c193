"""Merges the answers of several indexes, each with all codes of its items."""

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from mch_jax.index.algorithm1 import count_visits
from mch_jax.index.answers import NearestItems, exact_counts
from mch_jax.kernels import merge


def merged_nearest(
    item: Int64[np.ndarray, "s m k"],
    distance: Int32[np.ndarray, "s m k"],
    masks: UInt64[np.ndarray, " b *w"],
    bounds: Int64[np.ndarray, "s m+1"],
    new_items: Int64[np.ndarray, " b"],
    num_bits: int,
) -> NearestItems:
    """Returns the nearest items of s indexes, as one index with all their codes would.

    A bucket can hold codes of several indexes. The counts of Algorithm 1 are therefore taken from
    the buckets that each one visited, not added up.

    Args:
      item: The nearest items in each index, as `BucketIndex.search` returns them.
      distance: Their distances in bits.
      masks: Flip masks of the buckets that were visited in each index, of all indexes one after the
        other, as `BucketIndex.visits` returns them.
      bounds: The buckets of query i in an index begin at bounds[index, i].
      new_items: Number of items that each bucket is the first of its index to hold.
      num_bits: Code length q.
    """
    _, num_queries, k = item.shape
    nearest, bits = np.empty((num_queries, k), np.int64), np.empty((num_queries, k), np.int32)
    merge.merge_nearest(item, distance, nearest, bits)
    if masks.ndim > 1:
        return NearestItems(nearest, bits, *_count_long(masks, bounds, new_items, k, num_bits))
    probed, nonempty = np.empty(num_queries, np.uint64), np.empty(num_queries, np.int64)
    merge.count_visits(masks, bounds, new_items, k, num_bits, probed, nonempty)
    return NearestItems(nearest, bits, exact_counts(probed, num_bits), nonempty)


def _count_long(
    masks: UInt64[np.ndarray, "b w"],
    bounds: Int64[np.ndarray, "s m+1"],
    new_items: Int64[np.ndarray, " b"],
    k: int,
    num_bits: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the counts of Algorithm 1 for codes of more than 64 bits."""
    probed, nonempty = [], []
    for start, stop in zip(bounds[:, :-1].T, bounds[:, 1:].T, strict=True):
        rows = np.concatenate([np.arange(*both) for both in zip(start, stop, strict=True)])
        counts = count_visits(masks[rows], new_items[rows], k, num_bits)
        probed.append(counts[0])
        nonempty.append(counts[1])
    fits = max(probed, default=0) < 1 << 63
    return np.array(probed, np.int64 if fits else object), np.array(nonempty, np.int64)
