"""Kernels that find the buckets within a distance of a query.

There are two ways: to look up every code at a radius, or to read the rings that can hold a code
within reach. The triangle inequality bounds these rings, and those of one pivot are adjacent in
memory, so that they are read with one vectorised loop.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from mch_jax.kernels.arrays import sort
from mch_jax.kernels.bits import (
    distance_to,
    first_within,
    lowest_bit,
    mask_within,
    popcount,
    prefetch,
)
from mch_jax.kernels.filter import possible_pairs
from mch_jax.kernels.jit import kernel, leaf
from mch_jax.kernels.segment import (
    DIRECT_BITS,
    NO_LIMIT,
    ROW_BITS,
    ZERO,
    find_row,
    first_slot,
)

REACH, NUM_WITHIN, NUM_FOUND, NUM_ITEMS = range(4)  # of BucketsFound.counters
PIVOT_MASK = 0xFFFFFFFF
LOOKUPS_AHEAD = 64  # slots of the table that are loaded before the codes are looked up
MIN_BYTES_AHEAD = 2**22  # of a table whose slots are loaded; a smaller one stays in the cache
LOOKUP_COST, FILTER_COST = 384, 48  # codes that are read in the time of a lookup, of a test
SHARED_BYTES = 2**15  # of keys that several queries read in turn: they fit into the L1 cache


class BucketsFound(NamedTuple):
    """The buckets found for one query so far. Kernels change the arrays in place.

    Attributes:
      buckets: distance << ROW_BITS | row, in the order found; `counters[NUM_FOUND]` of them count.
      counters: REACH, the largest distance at which buckets are still collected; NUM_WITHIN, the
        number of buckets within reach that were found by scanning; NUM_FOUND, the number of buckets
        found; NUM_ITEMS, the number of items in buckets found by lookup.
      per_distance: Number of buckets that were found by scanning at each distance.
    """

    buckets: Int64[np.ndarray, " size"]
    counters: Int64[np.ndarray, "4"]
    per_distance: Int64[np.ndarray, " q+1"]


class PivotOrder(NamedTuple):
    """The pivots of a segment as seen from one query, and buffers for sorting them.

    Attributes:
      order: distance << 32 | pivot, the nearest pivot first.
      spare: A buffer of at least the same size.
      starts: A buffer for counting by distance.
    """

    order: Int64[np.ndarray, " p"]
    spare: Int64[np.ndarray, " p"]
    starts: Int64[np.ndarray, " q+2"]


@kernel
def new_buckets_found(size, num_bits):
    """Returns empty `BucketsFound` with capacity for `size` buckets."""
    counters, per_distance = np.zeros(4, np.int64), np.zeros(num_bits + 1, np.int64)
    return BucketsFound(np.empty(size, np.int64), counters, per_distance)


@kernel
def with_twice_the_capacity(found):
    """Returns `BucketsFound` with room for twice as many buckets. Those found so far are lost."""
    buckets = np.empty(2 * found.buckets.size, np.int64)
    return BucketsFound(buckets, found.counters, found.per_distance)


@kernel
def new_pivot_orders(segments, num_bits):
    """Returns a `PivotOrder` for each of the two segments. They share their buffers."""
    num_base, num_delta = len(segments.base.pivots), len(segments.delta.pivots)
    spare, starts = np.empty(max(num_base, num_delta), np.int64), np.zeros(num_bits + 2, np.int64)
    base = PivotOrder(np.empty(num_base, np.int64), spare, starts)
    return base, PivotOrder(np.empty(num_delta, np.int64), spare, starts)


@leaf
def look_up_radius(segment, first_row, query, num_bits, radius, found):
    """Looks up every code of one word at exactly `radius`; see `_look_up_flips`.

    Codes of more words are never looked up here.
    """
    return _look_up_flips(segment.keys, segment, first_row, query, num_bits, radius, found)


@leaf
def _look_up_flips(keys, segment, first_row, query, num_bits, radius, found):
    """Looks up every code at exactly `radius` and appends the buckets that exist to `found`.

    Args:
      keys: The keys of the segment.
      segment: The segment to look in.
      first_row: Number of its first row among the rows of all segments.
      query: The query's code.
      num_bits: Code length q.
      radius: Distance in bits, from 0 to q.
      found: Buckets found so far; changed.

    Returns:
      False if `found` was too small for all of them.
    """
    if keys.ndim > 1:
        return True
    offsets, table = segment.offsets, segment.table
    buckets, counters = found.buckets, found.counters
    flips = (np.uint64(1) << np.uint64(radius)) - np.uint64(1)
    last = flips << np.uint64((num_bits - radius) % 64)
    if num_bits > DIRECT_BITS and table.nbytes >= MIN_BYTES_AHEAD:
        ahead = flips
        for _ in range(LOOKUPS_AHEAD):
            prefetch(table, first_slot(table, keys, query ^ ahead))
            if ahead == last:
                break
            ahead = _next_flips(ahead)
    while True:
        row = find_row(table, keys, query ^ flips, num_bits)
        if row >= 0:
            if counters[NUM_FOUND] == buckets.size:
                return False
            buckets[counters[NUM_FOUND]] = (radius << ROW_BITS) | (first_row + row)
            counters[NUM_FOUND] += 1
            counters[NUM_ITEMS] += np.int64(offsets[row + 1]) - np.int64(offsets[row])
        if flips == last:
            return True
        flips = _next_flips(flips)


@leaf
def look_up_pairs(segment, code_filter, query, num_bits, flips, found):
    """Looks up every code of one word at a radius of 2 and appends the buckets that exist.

    Args:
      segment: The base, whose rows come first among those of all segments.
      code_filter: The filter of its codes.
      query: The query's code.
      num_bits: Code length q.
      flips: A buffer (`filter.possible_pairs`); changed.
      found: Buckets found so far; changed.

    Returns:
      False if `found` was too small for all of them.
    """
    return _look_up_pairs(segment.keys, segment, code_filter, query, num_bits, flips, found)


@leaf
def _look_up_pairs(keys, segment, code_filter, query, num_bits, flips, found):
    """Does what `look_up_pairs` does; the keys decide what is compiled."""
    if keys.ndim > 1:
        return True
    offsets, table = segment.offsets, segment.table
    buckets, counters = found.buckets, found.counters
    num_flips = possible_pairs(code_filter, query, num_bits, flips)
    if counters[NUM_FOUND] + num_flips > buckets.size:
        return False
    for start in range(0, num_flips, LOOKUPS_AHEAD):
        stop = min(start + LOOKUPS_AHEAD, num_flips)
        for i in range(start, stop):
            prefetch(table, first_slot(table, keys, query ^ flips[i]))
        for i in range(start, stop):
            row = find_row(table, keys, query ^ flips[i], num_bits)
            if row >= 0:
                buckets[counters[NUM_FOUND]] = (np.int64(2) << ROW_BITS) | row
                counters[NUM_FOUND] += 1
                counters[NUM_ITEMS] += np.int64(offsets[row + 1]) - np.int64(offsets[row])
    return True


@leaf
def _next_flips(flips):
    """Returns the next larger mask with as many bits set (Gosper)."""
    low = flips & (~flips + np.uint64(1))
    carry = flips + low
    zeros = popcount(low - np.uint64(1))  # two shifts, because a shift by 64 is undefined
    return carry | ((flips ^ carry) >> zeros >> np.uint64(2))


@leaf
def _scan_rows(keys, first_row, start, stop, query, enough, found):
    """Appends the buckets of rows start..stop that lie within reach to `found`.

    Reach is lowered once `enough` buckets lie within a smaller distance. Nothing but the keys is
    read.

    Args:
      keys: The keys of a segment.
      first_row: Number of the segment's first row among the rows of all segments.
      start: First row to read.
      stop: End of the rows to read.
      query: The query's code.
      enough: Number of buckets after which reach falls.
      found: Buckets found so far; changed.

    Returns:
      False if `found` was too small.
    """
    buckets, counters, per_distance = found.buckets, found.counters, found.per_distance
    reach, within, count = counters[REACH], counters[NUM_WITHIN], counters[NUM_FOUND]
    begin = start & ~7  # a cache line of the keys: loads across two lines take half as long again
    before = np.uint64(start - begin)
    while begin < stop:
        if count + 64 > buckets.size:
            return False
        mask = mask_within(keys, begin, stop, query, reach) >> before << before
        before = np.uint64(0)
        begin += 64
        if not mask:
            begin = first_within(keys, begin, stop, query, reach)
            continue
        while mask:
            hit = begin - 64 + lowest_bit(mask)
            mask &= mask - np.uint64(1)
            distance = distance_to(keys, hit, query)
            if distance > reach:  # reach fell within this block
                continue
            buckets[count] = (distance << ROW_BITS) | (first_row + hit)
            count += 1
            per_distance[distance] += 1
            within += 1
            while within - per_distance[reach] >= enough:
                within -= per_distance[reach]
                reach -= 1
    counters[REACH], counters[NUM_WITHIN], counters[NUM_FOUND] = reach, within, count
    return True


@leaf
def find_nearest_pivot(pivots, query, order):
    """Fills `order` with distance << 32 | pivot, the nearest pivot first, the others unsorted."""
    nearest = NO_LIMIT
    for i in range(order.size):
        order[i] = (distance_to(pivots, i, query) << 32) | i
        nearest = min(nearest, order[i])
    if order.size:
        order[0], order[nearest & PIVOT_MASK] = nearest, order[0]


@leaf
def _sort_near_pivots(pivots, bound):
    """Moves the pivots within `bound` right after the first, by distance; returns their end."""
    order, spare, starts = pivots.order, pivots.spare, pivots.starts
    stop = 1
    for i in range(1, order.size):
        entry = order[i]
        order[i] = order[stop]
        order[stop] = entry
        stop += entry >> 32 <= bound
    if stop <= 16:
        sort(order[1:stop])
        return stop
    starts[:] = 0
    for i in range(1, stop):
        spare[i] = order[i]
        starts[(order[i] >> 32) + 1] += 1
    for i in range(starts.size - 1):
        starts[i + 1] += starts[i]
    for i in range(1, stop):
        distance = spare[i] >> 32
        order[1 + starts[distance]] = spare[i]
        starts[distance] += 1
    return stop


@leaf
def scan_rings(segment, first_row, query, num_bits, enough, pivots, found):
    """Appends every bucket of a segment within reach to `found`, nearest pivots first.

    With delta = d(query, pivot) and nearest the smallest delta, a code x of that pivot within reach
    satisfies delta - reach <= d(x, pivot) <= nearest + reach. The lower bound is the triangle
    inequality. The upper bound holds because x is no farther from its own pivot than from the
    query's nearest one.

    Args:
      segment: The segment to read.
      first_row: Number of its first row among the rows of all segments.
      query: The query's code.
      num_bits: Code length q.
      enough: Number of buckets after which reach falls; NO_LIMIT to keep it.
      pivots: The segment's pivots, as `find_nearest_pivot` leaves them; changed.
      found: Buckets found so far and the reach; changed.

    Returns:
      False if `found` was too small.
    """
    return scan_nearest_pivot(
        segment, first_row, query, num_bits, enough, pivots, found
    ) and scan_other_pivots(segment, first_row, query, num_bits, enough, pivots, found)


@leaf
def scan_nearest_pivot(segment, first_row, query, num_bits, enough, pivots, found):
    """Does the part of `scan_rings` that reads the rings of the nearest pivot."""
    keys, rings, width, counters = segment.keys, segment.rings, num_bits + 1, found.counters
    if pivots.order.size == 0:
        return True
    nearest, own = pivots.order[0] >> 32, (pivots.order[0] & PIVOT_MASK) * width
    # It is read ring by ring, from the query's ring outward, so that reach falls early.
    num_steps = 2 * width if enough < NO_LIMIT else 1
    for i in range(num_steps):
        step = (i + 1) // 2
        if step > counters[REACH]:
            break
        low = high = nearest + (step if i % 2 == 0 else -step)
        if num_steps == 1:
            low, high = max(0, nearest - counters[REACH]), min(num_bits, nearest + counters[REACH])
        if low < 0 or high > num_bits:
            continue
        start, stop = np.int64(rings[own + low]), np.int64(rings[own + high + 1])
        if not _scan_rows(keys, first_row, start, stop, query, enough, found):
            return False
    return True


@leaf
def scan_other_pivots(segment, first_row, query, num_bits, enough, pivots, found):
    """Does the part of `scan_rings` that reads the rings of all other pivots."""
    keys, rings, width, counters = segment.keys, segment.rings, num_bits + 1, found.counters
    if pivots.order.size == 0:
        return True
    nearest = pivots.order[0] >> 32
    for i in range(1, _sort_near_pivots(pivots, nearest + 2 * counters[REACH])):
        delta, own = pivots.order[i] >> 32, (pivots.order[i] & PIVOT_MASK) * width
        low, high = max(0, delta - counters[REACH]), min(num_bits, nearest + counters[REACH])
        if low > high:
            break
        start, stop = np.int64(rings[own + low]), np.int64(rings[own + high + 1])
        if not _scan_rows(keys, first_row, start, stop, query, enough, found):
            return False
    return True


@leaf
def pays_to_look_up(segment, code_filter, has_delta, num_bits, pivots, radius):
    """Returns True if looking up all codes at a radius of 1 or 2 costs less than reading rings.

    Args:
      segment: The base.
      code_filter: The filter of its codes, without which radius 2 is not looked up.
      has_delta: Whether there is a delta, which has no filter.
      num_bits: Code length q.
      pivots: The segment's pivots, as `find_nearest_pivot` leaves them.
      radius: Distance in bits.
    """
    if segment.keys.ndim > 1 or pivots.order.size == 0:
        return False
    if radius == 1:
        cost = num_bits * LOOKUP_COST
    elif radius == 2 and code_filter.size and not has_delta:
        cost = num_bits * (num_bits - 1) // 2 * FILTER_COST
    else:
        return False
    nearest, own = pivots.order[0] >> 32, (pivots.order[0] & PIVOT_MASK) * (num_bits + 1)
    low, high = max(0, nearest - radius), min(num_bits, nearest + radius)
    return cost < np.int64(segment.rings[own + high + 1]) - np.int64(segment.rings[own + low])


@leaf
def reads_most(segment, num_bits, pivots, reach):
    """Returns True if the rings that can hold a code within reach have more than half of all rows.

    Args:
      segment: The segment.
      num_bits: Code length q.
      pivots: The segment's pivots, as `find_nearest_pivot` leaves them.
      reach: Distance in bits.
    """
    order, rings, width = pivots.order, segment.rings, num_bits + 1
    nearest, num_near, num_rows = order[0] >> 32, 0, ZERO
    for entry in order:
        num_near += entry >> 32 <= nearest + 2 * reach
    if 2 * num_near < order.size:  # usual
        return False
    for entry in order:
        delta, own = entry >> 32, (entry & PIVOT_MASK) * width
        low, high = max(0, delta - reach), min(num_bits, nearest + reach)
        if low <= high:
            num_rows += np.int64(rings[own + high + 1]) - np.int64(rings[own + low])
    return 2 * num_rows > segment.offsets.size - 1


@leaf
def scan_together(segment, queries, chosen, enough, together):
    """Appends every bucket of a segment within reach of each query, reading the keys once for all.

    Args:
      segment: The segment to read.
      queries: Codes of all queries.
      chosen: int64, rows of `queries`.
      enough: Number of buckets after which reach falls.
      together: `BucketsFound` whose arrays have a row for each chosen query; changed.

    Returns:
      False if `together` was too small.
    """
    keys, num_rows = segment.keys, segment.offsets.size - 1
    step = max(SHARED_BYTES * num_rows // keys.nbytes // 64, 1) * 64
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        for i in range(chosen.size):
            query = queries[chosen[i]]
            first = first_within(keys, start, stop, query, together.counters[i, REACH])
            if first < stop and not _scan_rows(
                keys, ZERO, first, stop, query, enough, found_of(together, i)
            ):
                return False
    return True


@leaf
def found_of(together, i):
    """Returns the buckets found for one of several queries; see `scan_together`."""
    return BucketsFound(together.buckets[i], together.counters[i], together.per_distance[i])


@leaf
def find_ball(segments, query, num_bits, radius, by_lookup, pivot_orders, found):
    """Finds every bucket within a radius, in place of what `found` holds.

    Args:
      segments: Base and delta.
      query: The query's code.
      num_bits: Code length q.
      radius: Distance in bits, from 0 to q.
      by_lookup: Whether to look up every code instead of reading rings.
      pivot_orders: Buffers, as `new_pivot_orders` makes them; changed.
      found: The buckets found; changed.

    Returns:
      False if `found` was too small for all of them.
    """
    base, delta = segments.base, segments.delta
    base_pivots, delta_pivots = pivot_orders
    delta_row = base.offsets.size - 1
    found.per_distance[:], found.counters[:] = 0, 0
    if by_lookup:
        for r in range(radius + 1):
            if not look_up_radius(base, ZERO, query, num_bits, r, found):
                return False
            if delta.items.size and not look_up_radius(delta, delta_row, query, num_bits, r, found):
                return False
        return True
    found.counters[REACH] = radius
    find_nearest_pivot(base.pivots, query, base_pivots.order)
    find_nearest_pivot(delta.pivots, query, delta_pivots.order)
    return scan_rings(base, ZERO, query, num_bits, NO_LIMIT, base_pivots, found) and scan_rings(
        delta, delta_row, query, num_bits, NO_LIMIT, delta_pivots, found
    )
