"""Merges the answers of the shards into the answer that one index of all codes gives."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from mch_jax.cluster.replica import NearestInShard, WithinShard
from mch_jax.index import ItemsWithin, NearestItems, merged_nearest


def merge_nearest(shards: Sequence[NearestInShard], num_bits: int) -> NearestItems:
    """Returns the nearest items of all shards.

    Args:
      shards: The answer of each shard.
      num_bits: The code length.
    """
    first = np.cumsum([0] + [len(shard.mask) for shard in shards[:-1]])
    return merged_nearest(
        np.stack([shard.item for shard in shards]),
        np.stack([shard.distance for shard in shards]),
        np.concatenate([shard.mask for shard in shards]),
        np.stack([shard.bucket_offsets for shard in shards]) + first[:, None],
        np.concatenate([shard.new_items for shard in shards]),
        num_bits,
    )


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
