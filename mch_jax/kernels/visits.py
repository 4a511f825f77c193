"""Kernel that lists the non-empty buckets that Algorithm 1 visits, in its order."""

import numpy as np

from mch_jax.kernels.arrays import ensure_capacity
from mch_jax.kernels.jit import kernel, leaf
from mch_jax.kernels.rank import compare_masks, slot_of, sort_by_mask, word_of
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
def _rows_in_order(keys, delta_keys, delta_row, query, buckets):
    """Returns the rows of the buckets found by distance, then by flip mask."""
    if keys.ndim == 1:
        flips = np.empty(buckets.size, np.uint64)
        for i in range(buckets.size):
            row = buckets[i] & ROW_MASK
            flips[i] = query ^ (keys[row] if row < delta_row else delta_keys[row - delta_row])
        order = np.argsort(flips)
        order = order[np.argsort((buckets >> ROW_BITS)[order], kind="mergesort")]
        return (buckets & ROW_MASK)[order]
    order = np.argsort(buckets, kind="mergesort")  # the distance is in the high bits
    rows, start = buckets[order] & ROW_MASK, 0
    while start < rows.size:
        stop, far = start, buckets[order[start]] >> ROW_BITS
        while stop < rows.size and buckets[order[stop]] >> ROW_BITS == far:
            stop += 1
        sort_by_mask(keys, delta_keys, delta_row, query, rows[start:stop])
        start = stop
    return rows


@leaf
def _is_same_code(keys, delta_keys, delta_row, query, one, other):
    """Returns whether two rows, of the two segments, have the same code."""
    if keys.ndim == 1:
        a = keys[one] if one < delta_row else delta_keys[one - delta_row]
        return a == (keys[other] if other < delta_row else delta_keys[other - delta_row])
    return compare_masks(keys, delta_keys, delta_row, query, one, other) == 0


@leaf
def _write_mask(keys, delta_keys, delta_row, query, row, masks, position):
    """Writes the flip mask of a row to word `position` of `masks` and those after it."""
    if keys.ndim == 1:
        key = keys[row] if row < delta_row else delta_keys[row - delta_row]
        masks[position] = key ^ query
    else:
        for j in range(query.size):
            masks[position + j] = word_of(keys, delta_keys, delta_row, row, j) ^ query[j]


@leaf
def _num_words(keys):
    """Returns the number of words of a code."""
    if keys.ndim == 1:
        return 1
    return keys.shape[1]


@kernel
def _by_query(firsts, counts, masks, new_items, num_words):
    """Returns offsets [m + 1], masks and numbers of new items in the order of the queries.

    Args:
      firsts: int64 [m], the first bucket of each query.
      counts: int64 [m], its number of buckets.
      masks: Words of the flip masks of the buckets.
      new_items: Number of new items of each bucket.
      num_words: Number of words of a mask.
    """
    offsets = np.zeros(firsts.size + 1, np.int64)
    for m in range(firsts.size):
        offsets[m + 1] = offsets[m] + counts[m]
    sorted_masks = np.empty(offsets[-1] * num_words, np.uint64)
    sorted_items = np.empty(offsets[-1], np.int64)
    for m in range(firsts.size):
        for i in range(counts[m]):
            sorted_items[offsets[m] + i] = new_items[firsts[m] + i]
            for j in range(num_words):
                word = (offsets[m] + i) * num_words + j
                sorted_masks[word] = masks[(firsts[m] + i) * num_words + j]
    return offsets, sorted_masks, sorted_items


@kernel
def visited_buckets(base, delta, queries, order, num_bits, radii, k, lookup_radius):
    """Returns the non-empty buckets that Algorithm 1 visits up to the k-th item of each query.

    Args:
      base: The large segment.
      delta: The small segment.
      queries: uint64 [m] or [m, w].
      order: int64 [m], the order in which the queries are answered.
      num_bits: Code length q.
      radii: int64 [m], distance of the k-th item, or q where fewer exist. No bucket beyond it is
        listed.
      k: Number of items.
      lookup_radius: Radius up to which codes are looked up instead of reading rings.

    Returns:
      offsets [m + 1], and for each bucket the words of its flip mask and the number of items that
      it is the first to hold.
    """
    firsts, counts = np.empty((2, len(queries)), np.int64)
    used = ZERO
    num_words = _num_words(base.keys)
    masks, new_items = np.empty(1024, np.uint64), np.empty(1024, np.int64)
    segments = Segments(base, delta)
    pivot_orders = new_pivot_orders(segments, num_bits)
    found = new_buckets_found(1024, num_bits)
    base_items = BucketItems(base.offsets, base.items, base.dead)
    delta_items = BucketItems(delta.offsets, delta.items, delta.dead)
    delta_row = base.offsets.size - 1
    num_slots = 64
    while num_slots < 4 * min(k, base.items.size + delta.items.size):
        num_slots *= 2
    seen = np.empty(num_slots, np.int64)
    for m in order:
        query, count = queries[m], ZERO
        seen[:], firsts[m] = 0, used
        by_lookup = radii[m] <= lookup_radius
        while not find_ball(segments, query, num_bits, radii[m], by_lookup, pivot_orders, found):
            found = with_twice_the_capacity(found)
        num_found, buckets = found.counters[NUM_FOUND], found.buckets
        rows = _rows_in_order(base.keys, delta.keys, delta_row, query, buckets[:num_found])
        last = -1  # row of the bucket that was listed last
        for row in rows:
            is_same = last >= 0 and _is_same_code(
                base.keys, delta.keys, delta_row, query, row, last
            )
            if count == k and not is_same:
                break
            if row < delta_row:
                new, alive = _meet_items(base_items, row, k, seen, count)
            else:
                new, alive = _meet_items(delta_items, row - delta_row, k, seen, count)
            if not alive:
                continue
            count += new
            if is_same:  # both segments hold this bucket
                new_items[used - 1] += new
                continue
            masks = ensure_capacity(masks, used * num_words, np.int64(num_words))
            new_items = ensure_capacity(new_items, used, np.int64(1))
            _write_mask(base.keys, delta.keys, delta_row, query, row, masks, used * num_words)
            new_items[used], last = new, row
            used += 1
        counts[m] = used - firsts[m]
    return _by_query(firsts, counts, masks, new_items, num_words)
