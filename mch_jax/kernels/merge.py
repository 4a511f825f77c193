"""Kernels that merge the answers of several shards of an index."""

import numpy as np

from mch_jax.kernels.bits import num_visited, popcount
from mch_jax.kernels.jit import kernel


@kernel
def merge_nearest(items, distances, item, distance):
    """Fills the k nearest items of each query.

    Args:
      items: int64 [s, m, k], the nearest items of each shard, by distance, then by item; -1 where
        fewer exist. No item is in two shards.
      distances: int32 [s, m, k].
      item: int64 [m, k], filled.
      distance: int32 [m, k], filled.
    """
    num_shards, num_queries, k = items.shape
    taken = np.empty(num_shards, np.int64)
    for m in range(num_queries):
        taken[:] = 0
        for i in range(k):
            best = -1
            for s in range(num_shards):
                j = taken[s]
                if j == k or items[s, m, j] < 0:
                    continue
                if best < 0:
                    best = s
                    continue
                apart = distances[s, m, j] - distances[best, m, taken[best]]
                if apart < 0 or (apart == 0 and items[s, m, j] < items[best, m, taken[best]]):
                    best = s
            item[m, i], distance[m, i] = -1, -1
            if best >= 0:
                item[m, i] = items[best, m, taken[best]]
                distance[m, i] = distances[best, m, taken[best]]
                taken[best] += 1


@kernel
def count_visits(masks, bounds, new_items, k, num_bits, probed, nonempty):
    """Fills the numbers of buckets that Algorithm 1 visits, from those that each shard visits.

    Args:
      masks: uint64 [b], flip masks of the buckets of all shards, up to 64 bits. Those of one shard
        and query are in the order of Algorithm 1: by distance, then by mask.
      bounds: int64 [s, m + 1]. The buckets of shard s and query m begin at `bounds[s, m]`.
      new_items: int64 [b], number of items that a bucket is the first of its shard to hold.
      k: Number of items to find.
      num_bits: Code length q.
      probed: uint64 [m], filled; 0 stands for 2^q.
      nonempty: int64 [m], filled.
    """
    num_shards = len(bounds)
    position = np.empty(num_shards, np.int64)
    for m in range(len(probed)):
        position[:] = bounds[:, m]
        met, num_buckets, last = 0, 0, np.uint64(0)
        probed[m] = 0
        while met < k:
            best, mask, distance = -1, np.uint64(0), np.uint64(0)
            for s in range(num_shards):
                if position[s] == bounds[s, m + 1]:
                    continue
                other = masks[position[s]]
                far = popcount(other)
                if best < 0 or far < distance or (far == distance and other < mask):
                    best, mask, distance = s, other, far
            if best < 0:  # fewer than k items exist
                break
            num_buckets += num_buckets == 0 or mask != last
            last = mask
            met += new_items[position[best]]
            position[best] += 1
            if met >= k:
                probed[m] = num_visited(mask, np.int64(distance), num_bits)
        nonempty[m] = num_buckets
