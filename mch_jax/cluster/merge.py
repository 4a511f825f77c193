"""Merges the answers of the shards into the answer that one index of all codes gives."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from mch_jax.cluster.replica import NearestInShard, WithinShard
from mch_jax.index import ItemsWithin, NearestItems, count_visits
from mch_jax.index.algorithm1 import BINOMIALS
from mch_jax.index.answers import exact_counts
from mch_jax.kernels import merge


def merge_nearest(shards: Sequence[NearestInShard], k: int, num_bits: int) -> NearestItems:
    """Returns the nearest items of all shards.

    A bucket can hold codes of several shards. The counts of Algorithm 1 are therefore taken from
    the buckets that the shards visited, not added up.

    Args:
      shards: The answer of each shard.
      k: The number of items.
      num_bits: The code length.
    """
    num_queries = len(shards[0].item)
    item, distance = np.empty((num_queries, k), np.int64), np.empty((num_queries, k), np.int32)
    items, distances = (np.stack(x) for x in zip(*(shard[:2] for shard in shards), strict=True))
    merge.merge_nearest(items, distances, item, distance)
    masks = np.concatenate([shard.mask for shard in shards])
    new_items = np.concatenate([shard.new_items for shard in shards])
    first = np.cumsum([0] + [len(shard.mask) for shard in shards[:-1]])
    bounds = np.stack([shard.bucket_offsets for shard in shards]) + first[:, None]
    if masks.ndim > 1:
        return NearestItems(item, distance, *_count_long(masks, bounds, new_items, k, num_bits))
    probed, nonempty = np.empty(num_queries, np.uint64), np.empty(num_queries, np.int64)
    merge.count_visits(masks, bounds, new_items, k, num_bits, BINOMIALS, probed, nonempty)
    return NearestItems(item, distance, exact_counts(probed, num_bits), nonempty)


def _count_long(masks, bounds, new_items, k, num_bits) -> tuple[np.ndarray, np.ndarray]:
    """Returns the counts of Algorithm 1 for codes of more than 64 bits."""
    counts = []
    for start, stop in zip(bounds[:, :-1].T, bounds[:, 1:].T, strict=True):
        rows = np.concatenate([np.arange(*both) for both in zip(start, stop, strict=True)])
        counts.append(count_visits(masks[rows], new_items[rows], k, num_bits))
    probed, nonempty = ([count[i] for count in counts] for i in range(2))
    fits = max(probed, default=0) < 1 << 63
    return np.array(probed, np.int64 if fits else object), np.array(nonempty, np.int64)


def merge_within(shards: Sequence[WithinShard]) -> ItemsWithin:
    """Returns the items of all shards within the radius.

    Args:
      shards: The answer of each shard.
    """
    item = np.concatenate([shard.item for shard in shards])
    distance = np.concatenate([shard.distance for shard in shards])
    query = np.concatenate([_query_of(shard.offsets) for shard in shards])
    order = np.lexsort((item, distance, query))
    offsets = np.sum([shard.offsets for shard in shards], axis=0)
    masks = np.concatenate([shard.mask for shard in shards])
    bucket_query = np.concatenate([_query_of(shard.bucket_offsets) for shard in shards])
    rows = np.column_stack([bucket_query.astype(np.uint64), masks])
    own_query = np.unique(rows, axis=0)[:, 0].astype(np.int64)
    nonempty = np.bincount(own_query, minlength=len(offsets) - 1)
    return ItemsWithin(offsets, item[order], distance[order], nonempty)


def _query_of(offsets: Int64[np.ndarray, " starts"]) -> Int64[np.ndarray, " n"]:
    """Returns the query that each row belongs to, where those of query i begin at offsets[i]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
