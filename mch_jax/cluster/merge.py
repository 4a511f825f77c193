"""Merges the answers of the shards into the answer that one index of all codes gives."""

from collections.abc import Sequence

import numpy as np

from mch_jax.cluster.replica import NearestInShard, WithinShard
from mch_jax.index import ItemsWithin, NearestItems, count_visits


def merge_nearest(shards: Sequence[NearestInShard], k: int, num_bits: int) -> NearestItems:
    """Returns the nearest items of all shards.

    A bucket can hold codes of several shards. The counts of Algorithm 1 are therefore taken from
    the buckets that the shards visited, not added up.

    Args:
      shards: The answer of each shard.
      k: The number of items.
      num_bits: The code length.
    """
    items = np.concatenate([shard.item for shard in shards], 1)
    distances = np.concatenate([shard.distance for shard in shards], 1)
    missing_last = np.where(items < 0, np.iinfo(np.int32).max, distances)
    order = np.lexsort((items, missing_last), axis=1)[:, :k]
    item, distance = (np.take_along_axis(array, order, 1) for array in (items, distances))
    probed, nonempty = [], np.zeros(len(item), np.int64)
    for query in range(len(item)):
        buckets = [_bounds(shard.bucket_offsets, query) for shard in shards]
        masks = [shard.mask[own] for shard, own in zip(shards, buckets, strict=True)]
        new_items = [shard.new_items[own] for shard, own in zip(shards, buckets, strict=True)]
        count, nonempty[query] = count_visits(
            np.concatenate(masks), np.concatenate(new_items), k, num_bits
        )
        probed.append(count)
    fits = max(probed, default=0) < 1 << 63
    return NearestItems(item, distance, np.array(probed, np.int64 if fits else object), nonempty)


def merge_within(shards: Sequence[WithinShard]) -> ItemsWithin:
    """Returns the items of all shards within the radius.

    Args:
      shards: The answer of each shard.
    """
    num_queries = len(shards[0].offsets) - 1
    offsets, nonempty = np.zeros(num_queries + 1, np.int64), np.zeros(num_queries, np.int64)
    items, distances = [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    for query in range(num_queries):
        rows = [_bounds(shard.offsets, query) for shard in shards]
        item = np.concatenate([shard.item[own] for shard, own in zip(shards, rows, strict=True)])
        distance = np.concatenate(
            [shard.distance[own] for shard, own in zip(shards, rows, strict=True)]
        )
        order = np.lexsort((item, distance))
        items.append(item[order])
        distances.append(distance[order])
        offsets[query + 1] = offsets[query] + len(item)
        masks = [shard.mask[_bounds(shard.bucket_offsets, query)] for shard in shards]
        nonempty[query] = len(np.unique(np.concatenate(masks), axis=0))
    return ItemsWithin(offsets, np.concatenate(items), np.concatenate(distances), nonempty)


def _bounds(offsets: np.ndarray, query: int) -> slice:
    return slice(offsets[query], offsets[query + 1])
