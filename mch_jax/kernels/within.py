"""Kernels that find every item within a radius of each query."""

import numpy as np

from mch_jax.kernels.arrays import ensure_capacity, sort, sort_unique
from mch_jax.kernels.bits import prefetch
from mch_jax.kernels.jit import kernel, leaf
from mch_jax.kernels.rank import group_by_distance
from mch_jax.kernels.scan import (
    NUM_FOUND,
    REACH,
    find_ball,
    new_buckets_found,
    new_pivot_orders,
    with_twice_the_capacity,
)
from mch_jax.kernels.segment import (
    DIRECT_BITS,
    ROW_BITS,
    ROW_MASK,
    ZERO,
    BucketItems,
    Segments,
    find_row,
    first_slot,
    has_bit,
    live_size,
)

SPARE, MAX_GROWTH = 1.1, 16  # capacity in relation to what the answered queries took
MAX_DIGIT_BITS = 12  # of a digit in sorting


@leaf
def _distance_bits(num_bits):
    """Returns the number of bits of a distance: an entry is item << distance_bits | distance."""
    return 8 if num_bits <= 64 else 11


@kernel
def _with_room(buffer, used, more, share):
    """Returns the buffer, or a larger copy if `more` values do not fit.

    Growing it step by step would cost more than the answer, because memory that was never accessed
    is slow to access, in several threads above all. The answers so far tell the size of all.

    Args:
      buffer: An array whose first `used` values count.
      used: Number of values to keep.
      more: Number of values that have to fit after them.
      share: Number of queries for each one whose values are kept or fit.
    """
    if used + more <= buffer.size:
        return buffer
    expected = np.int64(min(SPARE * share, MAX_GROWTH) * (used + more))
    return ensure_capacity(buffer, used, max(more, expected - used))


@kernel
def _append_entries(buckets, row, distance, distance_bits, entries, count):
    """Appends item << distance_bits | distance of a bucket's items.

    Returns:
      The entries, in a larger buffer where they did not fit, and their number.
    """
    offsets, items, dead = buckets.offsets, buckets.items, buckets.dead
    start, stop = np.int64(offsets[row]), np.int64(offsets[row + 1])
    entries = ensure_capacity(entries, count, stop - start)
    if dead.size == 0:
        target = entries[count:]
        for i, item in enumerate(items[start:stop]):
            target[i] = (np.int64(item) << distance_bits) | distance
        return entries, count + stop - start
    for i in range(start, stop):
        if not has_bit(dead, items[i]):
            entries[count] = (np.int64(items[i]) << distance_bits) | distance
            count += 1
    return entries, count


@leaf
def _num_item_bits(entries, distance_bits):
    """Returns the number of low bits of the items beyond which all entries are equal."""
    ones, common, num_bits = ZERO, ~ZERO, 0
    for entry in entries:
        ones |= entry
        common &= entry
    while (ones ^ common) >> (distance_bits + num_bits):
        num_bits += 1
    return num_bits


@kernel
def _sort_by_item(entries, distance_bits, counts, spare):
    """Returns the entries in ascending order, by a stable sort by item (radix sort).

    Args:
      entries: int64, by ascending distance; overwritten.
      distance_bits: Number of bits of a distance.
      counts: A buffer for MAX_DIGIT_BITS.
      spare: A buffer of the same size as the entries. The result lies in either of the two.
    """
    if entries.size < 128:
        sort(entries)
        return entries
    # Each digit is a pass over the entries and over the counts, so that many entries take a few
    # wide digits.
    widest, num_bits = 8, _num_item_bits(entries, distance_bits)
    while widest < MAX_DIGIT_BITS and entries.size >> (widest + 1):
        widest += 1
    num_digits = max(1, (num_bits + widest - 1) // widest)
    width = (num_bits + num_digits - 1) // num_digits
    mask = (np.int64(1) << width) - 1
    for shift in range(distance_bits, distance_bits + num_digits * width, max(width, 1)):
        counts[: mask + 2] = 0
        for entry in entries:
            counts[((entry >> shift) & mask) + 1] += 1
        for i in range(mask):
            counts[i + 1] += counts[i]
        for entry in entries:
            digit = (entry >> shift) & mask
            spare[counts[digit]] = entry
            counts[digit] += 1
        entries, spare = spare, entries
    return entries


@leaf
def _fill_nearest_first(entries, distance_bits, bounds, front, back, item, distance):
    """Fills item and distance from sorted entries, each item once; returns their number.

    The entries are read from both ends at once, because the next place for an item of a distance is
    known only after the one before it.

    Args:
      entries: int64, item << distance_bits | distance, ascending.
      distance_bits: Number of bits of a distance.
      bounds: Of the entries by distance, those at distance d would be from bounds[d] to
        bounds[d + 1].
      front: A buffer as large as `bounds`.
      back: Another one.
      item: Filled; as large as `entries`.
      distance: Filled; as large as `entries`.
    """
    distance_mask, size = (np.int64(1) << distance_bits) - 1, entries.size
    for far in range(bounds.size - 1):
        front[far], back[far] = bounds[far], bounds[far + 1]
    for i in range((size + 1) // 2):
        one, far = entries[i] >> distance_bits, entries[i] & distance_mask
        item[front[far]] = one
        # The first entry of an item is its nearest; the others are overwritten.
        front[far] += i == 0 or entries[i - 1] >> distance_bits != one
        j = size - 1 - i
        if j > i:
            one, far = entries[j] >> distance_bits, entries[j] & distance_mask
            item[back[far] - 1] = one
            back[far] -= entries[j - 1] >> distance_bits != one
    kept = ZERO
    for far in range(bounds.size - 1):
        first = kept
        for start, stop in ((bounds[far], front[far]), (back[far], bounds[far + 1])):
            if start != kept:
                for i in range(stop - start):
                    item[kept + i] = item[start + i]
            kept += stop - start
        distance[first:kept] = far
    return kept


@kernel
def _num_live_codes(keys, segments, num_bits, found):
    """Returns the number of distinct codes among the buckets found that hold an item."""
    base, delta, delta_row = segments.base, segments.delta, segments.base.offsets.size - 1
    base_items, count = BucketItems(base.offsets, base.items, base.dead), ZERO
    if keys.ndim > 1:
        code = np.empty(keys.shape[1], np.uint64)
        for i in range(found.counters[NUM_FOUND]):
            row = found.buckets[i] & ROW_MASK
            if row < delta_row:
                count += live_size(base_items, row) > 0
                continue
            row -= delta_row
            for j in range(code.size):
                code[j] = delta.keys[row >> 3, j, row & 7]
            row = find_row(base.table, base.keys, code, num_bits)
            count += row < 0 or live_size(base_items, row) == 0
        return count
    codes = np.empty(found.counters[NUM_FOUND], np.int64)
    for i in range(found.counters[NUM_FOUND]):
        row = found.buckets[i] & ROW_MASK
        if row < delta_row:
            codes[count] = np.int64(base.keys[row])
            count += live_size(base_items, row) > 0
        else:
            codes[count] = np.int64(delta.keys[row - delta_row])
            count += 1
    return sort_unique(codes[:count], count)


@leaf
def _find_rows(segment, queries, num_bits, rows, bounds):
    """Fills the row of each query's own bucket, or -1, and where its items will begin."""
    keys, offsets, table = segment.keys, segment.offsets, segment.table
    for m in range(len(queries)):
        ahead = m + 8
        if ahead < len(queries) and num_bits > DIRECT_BITS:
            prefetch(table, first_slot(table, keys, queries[ahead]))
        row = find_row(table, keys, queries[m], num_bits)
        rows[m] = row
        bounds[m + 1] = bounds[m]
        if row >= 0:
            bounds[m + 1] += np.int64(offsets[row + 1]) - np.int64(offsets[row])


@leaf
def _copy_items(offsets, items, rows, bounds, item, nonempty):
    """Fills the items of each query's own bucket."""
    for m in range(rows.size):
        nonempty[m] = rows[m] >= 0
        if rows[m] >= 0:
            start, stop = np.int64(offsets[rows[m]]), np.int64(offsets[rows[m] + 1])
            target = item[bounds[m] :]
            for i, one in enumerate(items[start:stop]):
                target[i] = one


@kernel
def items_at_code(segment, queries, num_bits):
    """Returns what `items_within` returns at radius 0, for one segment without removed items."""
    rows, bounds = np.empty(len(queries), np.int64), np.zeros(len(queries) + 1, np.int64)
    _find_rows(segment, queries, num_bits, rows, bounds)
    item, nonempty = np.empty(bounds[len(queries)], np.int64), np.empty(len(queries), np.int64)
    _copy_items(segment.offsets, segment.items, rows, bounds, item, nonempty)
    return bounds, item, np.zeros(item.size, np.int32), nonempty


@kernel
def items_within(base, delta, queries, num_bits, radius, by_lookup):
    """Finds every item within a radius of each query.

    Args:
      base: The large segment.
      delta: The small segment.
      queries: uint64 [m].
      num_bits: Code length q.
      radius: Distance in bits, from 0 to q.
      by_lookup: Whether to look up every code instead of reading rings.

    Returns:
      offsets [m + 1], item, distance and the number of non-empty buckets [m].
    """
    bounds, nonempty = np.zeros(len(queries) + 1, np.int64), np.zeros(len(queries), np.int64)
    item, distance = np.empty(1024, np.int64), np.empty(1024, np.int32)
    entries, spare = np.empty(64, np.int64), np.empty(64, np.int64)
    by_distance, front, back = np.zeros((3, radius + 2), np.int64)
    starts, counts = np.empty(num_bits + 3, np.int64), np.empty((1 << MAX_DIGIT_BITS) + 1, np.int64)
    segments = Segments(base, delta)
    pivot_orders = new_pivot_orders(segments, num_bits)
    found = new_buckets_found(1024, num_bits)
    rows = np.empty(1024, np.int64)
    base_items = BucketItems(base.offsets, base.items, base.dead)
    delta_items = BucketItems(delta.offsets, delta.items, delta.dead)
    delta_row, changed = base.offsets.size - 1, base.dead.size > 0 or delta.items.size > 0
    distance_bits = _distance_bits(num_bits)
    for m in range(len(queries)):
        query, used, count = queries[m], bounds[m], ZERO
        share = len(queries) / (m + 1)
        while not find_ball(segments, query, num_bits, radius, by_lookup, pivot_orders, found):
            found = with_twice_the_capacity(found)
            rows = np.empty(found.buckets.size, np.int64)
        num_found = found.counters[NUM_FOUND]
        if num_found == 1 and not changed:  # usual at radius 0: the bucket can be copied
            row, far = found.buckets[0] & ROW_MASK, found.buckets[0] >> ROW_BITS
            start = np.int64(base.offsets[row])
            count = np.int64(base.offsets[row + 1] - base.offsets[row])
            item = _with_room(item, used, count, share)
            distance = _with_room(distance, used, count, share)
            for i in range(count):
                item[used + i], distance[used + i] = base.items[start + i], far
            bounds[m + 1], nonempty[m] = used + count, 1
            continue
        found.counters[REACH] = radius
        group_by_distance(segments, found, rows, starts)
        for far in range(radius + 1):
            for row in rows[starts[far] : starts[far + 1]]:
                if row < delta_row:
                    entries, count = _append_entries(
                        base_items, row, far, distance_bits, entries, count
                    )
                else:
                    entries, count = _append_entries(
                        delta_items, row - delta_row, far, distance_bits, entries, count
                    )
            by_distance[far + 1] = count
        nonempty[m] = num_found
        if changed:
            nonempty[m] = _num_live_codes(base.keys, segments, num_bits, found)
        bounds[m + 1] = used
        if count == 0:
            continue
        ordered = entries[:count]
        if num_found > 1:
            spare = ensure_capacity(spare, ZERO, count)
            ordered = _sort_by_item(ordered, distance_bits, counts, spare[:count])
        item = _with_room(item, used, count, share)
        distance = _with_room(distance, used, count, share)
        bounds[m + 1] = used + _fill_nearest_first(
            ordered, distance_bits, by_distance, front, back,
            item[used : used + count], distance[used : used + count],
        )  # fmt: skip
    used = bounds[len(queries)]
    return bounds, item[:used], distance[:used], nonempty
