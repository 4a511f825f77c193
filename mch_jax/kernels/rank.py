"""Kernels that order the items of the buckets found, as Algorithm 1 meets them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64

from mch_jax.kernels.arrays import sort, sort_unique
from mch_jax.kernels.bits import mix, prefetch
from mch_jax.kernels.jit import leaf
from mch_jax.kernels.scan import NUM_FOUND, REACH
from mch_jax.kernels.segment import (
    DISTANCE_BITS,
    DISTANCE_MASK,
    NO_LIMIT,
    ROW_BITS,
    ROW_MASK,
    ZERO,
    BucketItems,
    has_bit,
)


class Ranking(NamedTuple):
    """Buffers for ordering the items of one query. Kernels change the arrays in place.

    Attributes:
      rows: Rows of the buckets within reach, by distance.
      starts: The rows at distance d are rows[starts[d]:starts[d + 1]].
      masks: A heap of flip masks, code XOR query, as large as `rows`; for codes of several words,
        of the positions of the masks in ascending order.
      seen: Hash table of the items met, as (item + 1) << DISTANCE_BITS | distance; 0 if empty.
      ties: Items at the distance of the k-th item.
    """

    rows: Int64[np.ndarray, " size"]
    starts: Int64[np.ndarray, " q+3"]
    masks: UInt64[np.ndarray, " size"]
    seen: Int64[np.ndarray, " slots"]
    ties: Int64[np.ndarray, " limit"]


@leaf
def group_by_distance(segments, found, rows, starts):
    """Fills `rows` with the buckets within reach, by distance, and `starts`; see `Ranking`.

    It also prefetches their items, all at once, because each access to memory has a long latency.
    """
    base, delta, buckets = segments.base, segments.delta, found.buckets
    reach, count = found.counters[REACH], found.counters[NUM_FOUND]
    delta_row = base.offsets.size - 1
    starts[: reach + 3] = 0
    for i in range(count):
        distance = buckets[i] >> ROW_BITS
        if distance <= reach:
            starts[distance + 2] += 1
    for i in range(reach + 2):
        starts[i + 1] += starts[i]
    for i in range(count):
        distance = buckets[i] >> ROW_BITS
        if distance <= reach:
            row = buckets[i] & ROW_MASK
            rows[starts[distance + 1]] = row
            starts[distance + 1] += 1
            if row < delta_row:
                prefetch(base.offsets, row)
            else:
                prefetch(delta.offsets, row - delta_row)
    for i in range(starts[reach + 1]):
        row = rows[i]
        if row < delta_row:
            prefetch(base.items, np.int64(base.offsets[row]))
        else:
            prefetch(delta.items, np.int64(delta.offsets[row - delta_row]))


@leaf
def _sift_down(masks, rows, parent, size):
    """Restores the min-heap of masks below `parent`."""
    while 2 * parent + 1 < size:
        child = 2 * parent + 1
        if child + 1 < size and masks[child + 1] < masks[child]:
            child += 1
        if masks[parent] <= masks[child]:
            return
        masks[parent], masks[child] = masks[child], masks[parent]
        rows[parent], rows[child] = rows[child], rows[parent]
        parent = child


@leaf
def slot_of(seen, item):
    """Returns the slot of the hash table of items met that holds an item, or would hold it."""
    slot = np.int64(mix(np.uint64(item)) & np.uint64(seen.size - 1))
    while seen[slot] != 0 and seen[slot] >> DISTANCE_BITS != np.int64(item) + 1:
        slot = (slot + 1) & (seen.size - 1)
    return slot


@leaf
def _was_nearer(seen, item, distance):
    """Returns whether an item was met at a smaller distance."""
    entry = seen[slot_of(seen, item)]
    return entry != 0 and (entry & DISTANCE_MASK) < distance


@leaf
def _take_items(buckets, row, distance, k, seen, item, count):
    """Appends a bucket's items that were not met before, until there are k.

    Args:
      buckets: The items of the bucket's segment.
      row: The bucket.
      distance: Its distance from the query.
      k: Number of items wanted.
      seen: Hash table of the items met; changed.
      item: The items met, in order; changed.
      count: Number of items met.

    Returns:
      The new number of items met, and whether the bucket has an item that was not removed.
    """
    offsets, items, dead = buckets.offsets, buckets.items, buckets.dead
    alive = False
    for i in range(np.int64(offsets[row]), np.int64(offsets[row + 1])):
        if dead.size and has_bit(dead, items[i]):
            continue
        alive = True
        slot = slot_of(seen, items[i])
        if seen[slot] == 0:
            seen[slot] = ((np.int64(items[i]) + 1) << DISTANCE_BITS) | distance
            item[count] = items[i]
            count += 1
            if count == k:
                break
    return count, alive


@leaf
def _add_ties(buckets, row, distance, need, seen, ties, count, limit):
    """Adds a bucket's smallest items below `limit` that no nearer bucket holds to `ties`.

    Returns:
      The number of ties and the limit: the largest of the `need` smallest, once these are known.
    """
    offsets, items, dead = buckets.offsets, buckets.items, buckets.dead
    taken = 0
    for i in range(np.int64(offsets[row]), np.int64(offsets[row + 1])):
        item = items[i]
        if np.int64(item) >= limit or taken == need:
            break
        if (dead.size and has_bit(dead, item)) or _was_nearer(seen, item, distance):
            continue
        ties[count] = item
        count += 1
        taken += 1
        if count == ties.size:
            count = sort_unique(ties[:count], need)
            limit = ties[count - 1] if count == need else NO_LIMIT
    return count, limit


@leaf
def _smallest_ties(segments, rows, distance, seen, ties, item):
    """Fills `item` with the smallest items of tied buckets that no nearer bucket holds."""
    base, delta = segments.base, segments.delta
    base_items = BucketItems(base.offsets, base.items, base.dead)
    delta_items = BucketItems(delta.offsets, delta.items, delta.dead)
    need, count, limit, delta_row = item.size, ZERO, NO_LIMIT, base.offsets.size - 1
    for row in rows:
        if row < delta_row:
            count, limit = _add_ties(base_items, row, distance, need, seen, ties, count, limit)
        else:
            row -= delta_row
            count, limit = _add_ties(delta_items, row, distance, need, seen, ties, count, limit)
    sort_unique(ties[:count], need)
    for i in range(need):
        item[i] = ties[i]


@leaf
def word_of(keys, delta_keys, delta_row, row, j):
    """Returns a word of a code of several words, by its row among the rows of both segments."""
    if row < delta_row:
        return keys[row >> 3, j, row & 7]
    row -= delta_row
    return delta_keys[row >> 3, j, row & 7]


@leaf
def compare_masks(keys, delta_keys, delta_row, query, one, other):
    """Returns -1, 0 or 1 as the flip mask of one row is below, equal to or above another's."""
    for j in range(query.size - 1, -1, -1):
        a = word_of(keys, delta_keys, delta_row, one, j) ^ query[j]
        b = word_of(keys, delta_keys, delta_row, other, j) ^ query[j]
        if a != b:
            return -1 if a < b else 1
    return 0


@leaf
def sort_by_mask(keys, delta_keys, delta_row, query, rows):
    """Sorts the rows of codes of several words by ascending flip mask (Shell's method)."""
    gap = 1
    while 9 * gap < rows.size:
        gap = 3 * gap + 1
    while gap:
        for i in range(gap, rows.size):
            row, j = rows[i], i
            while j >= gap and (
                compare_masks(keys, delta_keys, delta_row, query, row, rows[j - gap]) < 0
            ):
                rows[j] = rows[j - gap]
                j -= gap
            rows[j] = row
        gap //= 3


@leaf
def fill_masks(keys, delta_keys, delta_row, query, rows, masks):
    """Fills the flip mask of each row or, for codes of several words, its position.

    Positions are those among the masks in ascending order, and equal masks have the same one. The
    rows are sorted then.

    Args:
      keys: The keys of the base.
      delta_keys: The keys of the delta.
      delta_row: Number of the delta's first row among the rows of both segments.
      query: The query's code.
      rows: Rows of buckets; of several words, changed.
      masks: uint64, filled.
    """
    if keys.ndim == 1:
        for i in range(rows.size):
            row = rows[i]
            masks[i] = query ^ (keys[row] if row < delta_row else delta_keys[row - delta_row])
        return
    sort_by_mask(keys, delta_keys, delta_row, query, rows)
    position = np.uint64(0)
    for i in range(rows.size):
        if i > 0:
            position += np.uint64(
                compare_masks(keys, delta_keys, delta_row, query, rows[i - 1], rows[i]) != 0
            )
        masks[i] = position


@leaf
def rank_items(segments, query, k, reach, ranking, item, distance):
    """Orders the items of the grouped buckets as Algorithm 1 meets them.

    Args:
      segments: Base and delta.
      query: The query's code.
      k: Number of items wanted.
      reach: The distance up to which all buckets were found.
      ranking: The buckets, as `group_by_distance` leaves them, and buffers; changed.
      item: Filled with up to k items.
      distance: Filled with their distances.

    Returns:
      The number of items, the row of the bucket that held the k-th, and the number of non-empty
      buckets up to it. With fewer than k items the row has no meaning.
    """
    rows_by_distance, starts, masks = ranking.rows, ranking.starts, ranking.masks
    seen, ties = ranking.seen, ranking.ties
    seen[:] = 0
    base, delta = segments.base, segments.delta
    offsets = base.offsets
    base_items = BucketItems(base.offsets, base.items, base.dead)
    delta_items = BucketItems(delta.offsets, delta.items, delta.dead)
    changed, delta_row = base.dead.size > 0 or delta.items.size > 0, base.offsets.size - 1
    count, nonempty, last = ZERO, 0, ZERO
    mask = np.uint64(0)
    for radius in range(reach + 1):
        rows = rows_by_distance[starts[radius] : starts[radius + 1]]
        before, num_entries = count, count
        for row in rows:
            if num_entries < k and row < delta_row:
                num_entries += np.int64(offsets[row + 1]) - np.int64(offsets[row])
        if num_entries < k and not changed:  # the k-th item is farther: the order has no effect
            nonempty += rows.size
            for row in rows:
                count, _ = _take_items(base_items, row, radius, k, seen, item, count)
        else:
            fill_masks(base.keys, delta.keys, delta_row, query, rows, masks)
            for i in range(rows.size // 2 - 1, -1, -1):
                _sift_down(masks, rows, i, rows.size)
            counted = False  # whether the bucket `mask` was counted: both segments may hold it
            for left in range(rows.size - 1, -1, -1):
                counted = counted and masks[0] == mask
                mask, row = masks[0], rows[0]
                last = row
                if row < delta_row:
                    count, alive = _take_items(base_items, row, radius, k, seen, item, count)
                else:
                    row -= delta_row
                    count, alive = _take_items(delta_items, row, radius, k, seen, item, count)
                if alive and not counted:
                    nonempty += 1
                    counted = True
                if count == k:
                    _smallest_ties(segments, rows, radius, seen, ties, item[before:])
                    break
                masks[0], masks[left] = masks[left], masks[0]
                rows[0], rows[left] = rows[left], rows[0]
                _sift_down(masks, rows, ZERO, left)
        sort(item[before:count])
        distance[before:count] = radius
        if count == k:
            break
    return count, last, nonempty
