"""Kernel that lists the non-empty buckets that Algorithm 1 visits, in its order."""

import numpy as np

from mch_jax.kernels.arrays import ensure_capacity
from mch_jax.kernels.jit import kernel, leaf
from mch_jax.kernels.rank import slot_of
from mch_jax.kernels.scan import (
    NUM_FOUND,
    find_ball,
    new_buckets_found,
    new_pivot_orders,
    with_twice_the_capacity,
)
from mch_jax.kernels.segment import (
    DISTANCE_BITS,
    ROW_BITS,
    ROW_MASK,
    ZERO,
    BucketItems,
    Segments,
    has_bit,
)


@leaf
def _meet_items(buckets, row, k, seen, count):
    """Marks a bucket's items as met, until k are.

    Returns:
      How many were not met before, and whether the bucket has an item that was not removed.
    """
    new, alive, dead = ZERO, False, buckets.dead
    for i in range(np.int64(buckets.offsets[row]), np.int64(buckets.offsets[row + 1])):
        item = buckets.items[i]
        if dead.size and has_bit(dead, item):
            continue
        alive = True
        if count + new < k:
            slot = slot_of(seen, item)
            new += seen[slot] == 0
            seen[slot] = (np.int64(item) + 1) << DISTANCE_BITS
    return new, alive


@kernel
def visited_buckets(base, delta, queries, num_bits, radii, k):
    """Returns the non-empty buckets that Algorithm 1 visits up to the k-th item of each query.

    Args:
      base: The large segment.
      delta: The small segment.
      queries: uint64 [m].
      num_bits: Code length q.
      radii: int64 [m], distance of the k-th item, or q where fewer exist. No bucket beyond it is
        listed.
      k: Number of items.

    Returns:
      offsets [m + 1], and for each bucket its flip mask and the number of items that it is the
      first to hold.
    """
    bounds, used = np.zeros(queries.size + 1, np.int64), ZERO
    masks, new_items = np.empty(1024, np.uint64), np.empty(1024, np.int64)
    segments = Segments(base, delta)
    pivot_orders = new_pivot_orders(segments, num_bits)
    found = new_buckets_found(1024, num_bits)
    base_items = BucketItems(base.offsets, base.items, base.dead)
    delta_items = BucketItems(delta.offsets, delta.items, delta.dead)
    delta_row = base.keys.size
    num_slots = 64
    while num_slots < 4 * min(k, base.items.size + delta.items.size):
        num_slots *= 2
    seen = np.empty(num_slots, np.int64)
    for m in range(queries.size):
        query, count = queries[m], ZERO
        seen[:] = 0
        while not find_ball(segments, query, num_bits, radii[m], False, pivot_orders, found):
            found = with_twice_the_capacity(found)
        num_found, buckets = found.counters[NUM_FOUND], found.buckets
        flips = np.empty(num_found, np.uint64)
        for i in range(num_found):
            row = buckets[i] & ROW_MASK
            flips[i] = query ^ (base.keys[row] if row < delta_row else delta.keys[row - delta_row])
        order = np.argsort(flips)
        order = order[np.argsort((buckets[:num_found] >> ROW_BITS)[order], kind="mergesort")]
        start = used
        for i in order:
            if count == k and masks[used - 1] != flips[i]:
                break
            row = buckets[i] & ROW_MASK
            if row < delta_row:
                new, alive = _meet_items(base_items, row, k, seen, count)
            else:
                new, alive = _meet_items(delta_items, row - delta_row, k, seen, count)
            if not alive:
                continue
            count += new
            if used > start and masks[used - 1] == flips[i]:  # both segments hold this bucket
                new_items[used - 1] += new
                continue
            masks = ensure_capacity(masks, used, np.int64(1))
            new_items = ensure_capacity(new_items, used, np.int64(1))
            masks[used], new_items[used] = flips[i], new
            used += 1
        bounds[m + 1] = used
    return bounds, masks[:used].copy(), new_items[:used].copy()
