"""Kernel that finds the k items of least asymmetric distance.

The asymmetric distance between a query and a code is the sum of the query's margins over the bits
in which they differ. A code at Hamming distance d costs at least the d smallest margins. So the
k-th smallest cost among some codes near the query bounds the Hamming distance of all that can be in
the answer, and these codes are found as in any other search.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from mch_jax.kernels.arrays import ensure_capacity, sort
from mch_jax.kernels.jit import kernel, leaf
from mch_jax.kernels.masks import fill_steps
from mch_jax.kernels.probe import is_new
from mch_jax.kernels.scan import (
    NUM_FOUND,
    REACH,
    find_ball,
    find_nearest_pivot,
    new_buckets_found,
    new_pivot_orders,
    scan_rings,
    with_twice_the_capacity,
)
from mch_jax.kernels.segment import (
    ITEM_BITS,
    NO_LIMIT,
    ROW_MASK,
    ZERO,
    BucketItems,
    Segments,
    has_bit,
)


class Costed(NamedTuple):
    """Buckets with their costs.

    Attributes:
      costs: Asymmetric distance of each bucket, in steps.
      rows: Row of each bucket among the rows of both segments.
    """

    costs: Int64[np.ndarray, " size"]
    rows: Int64[np.ndarray, " size"]


@leaf
def fill_tables(steps, tables):
    """Fills the cost of every value of every byte of a flip mask.

    Args:
      steps: int64 [q], the cost of each bit.
      tables: int64 [bytes, 256].
    """
    tables[:] = 0
    for bit in range(steps.size):
        table, flip = tables[bit >> 3], 1 << (bit & 7)
        for value in range(flip):
            table[flip + value] = table[value] + steps[bit]


@leaf
def cost_of(codes, row, query, tables):
    """Returns the asymmetric distance of a query to one of several codes, in steps.

    Args:
      codes: The codes, in any of the forms that `bits` describes.
      row: The row of the code.
      query: The query's code.
      tables: int64 [bytes, 256], the cost of every value of every byte of a flip mask.
    """
    cost = ZERO
    if codes.ndim == 1:
        mask = codes[row] ^ query
        for byte in range(tables.shape[0]):
            cost += tables[byte, np.int64(mask & np.uint64(255))]
            mask >>= np.uint64(8)
        return cost
    for byte in range(tables.shape[0]):
        j = byte >> 3
        if codes.ndim == 2:
            mask = codes[row, j] ^ query[j]
        else:
            mask = codes[row >> 3, j, row & 7] ^ query[j]
        cost += tables[byte, np.int64((mask >> np.uint64(8 * (byte & 7))) & np.uint64(255))]
    return cost


@leaf
def _append_costs(keys, delta_keys, delta_row, found, query, tables, bound, costed, count):
    """Appends the buckets found that cost no more than `bound`; returns their new number."""
    for i in range(found.counters[NUM_FOUND]):
        row = found.buckets[i] & ROW_MASK
        if keys.ndim == 1:  # not by `cost_of`, whose arguments would take as long as its loop
            mask = query ^ (keys[row] if row < delta_row else delta_keys[row - delta_row])
            cost = ZERO
            for byte in range(tables.shape[0]):
                cost += tables[byte, np.int64(mask & np.uint64(255))]
                mask >>= np.uint64(8)
        elif row < delta_row:
            cost = cost_of(keys, row, query, tables)
        else:
            cost = cost_of(delta_keys, row - delta_row, query, tables)
        if cost <= bound:
            costed.costs[count], costed.rows[count] = cost, row
            count += 1
    return count


@leaf
def _read_near(segments, query, num_bits, enough, pivot_orders, found):
    """Finds every bucket within the least reach that holds `enough` buckets.

    Returns:
      False if `found` was too small for all of them.
    """
    base, delta = segments.base, segments.delta
    base_pivots, delta_pivots = pivot_orders
    found.per_distance[:], found.counters[:] = 0, 0
    found.counters[REACH] = num_bits
    find_nearest_pivot(base.pivots, query, base_pivots.order)
    find_nearest_pivot(delta.pivots, query, delta_pivots.order)
    return scan_rings(base, ZERO, query, num_bits, enough, base_pivots, found) and scan_rings(
        delta, base.offsets.size - 1, query, num_bits, enough, delta_pivots, found
    )


@leaf
def _largest_radius(steps, order, bound):
    """Returns the largest Hamming distance at which a code can cost no more than `bound`."""
    for bit in range(steps.size):
        order[bit] = steps[bit]
    sort(order)
    radius, cost = 0, ZERO
    while radius < order.size and cost + order[radius] <= bound:
        cost += order[radius]
        radius += 1
    return radius


@leaf
def _copy_live(buckets, row, target, count):
    """Appends the items of a bucket that were not removed; returns their new number."""
    for i in range(np.int64(buckets.offsets[row]), np.int64(buckets.offsets[row + 1])):
        if not (buckets.dead.size and has_bit(buckets.dead, buckets.items[i])):
            target[count] = buckets.items[i]
            count += 1
    return count


@leaf
def _take_new(items, cost, high, seen, item, distance, count):
    """Appends items, ascending, that were not met at a smaller cost, until the answer is full."""
    for one in items:
        if count == item.size:
            break
        if is_new(seen, high | np.uint64(one)):
            item[count], distance[count] = one, cost
            count += 1
    return count


@kernel
def _rank(segments, costs, rows, seen, stamp, tied, item, distance):
    """Fills the items of least cost, equal costs by item.

    Args:
      segments: Base and delta.
      costs: int64, the costs of buckets in any order.
      rows: int64, their rows.
      seen: Hash table of the items met.
      stamp: Number of this ranking; slots of `seen` with another number are empty.
      tied: int64, a buffer for the items of buckets of equal cost.
      item: Filled with as many items as there are, up to its size.
      distance: Filled with their costs.

    Returns:
      The number of items, and the buffer, which may have been replaced by a larger one.
    """
    base, delta, delta_row = segments.base, segments.delta, segments.base.offsets.size - 1
    base_items = BucketItems(base.offsets, base.items, base.dead)
    delta_items = BucketItems(delta.offsets, delta.items, delta.dead)
    order, count, start = np.argsort(costs), ZERO, 0
    high = np.uint64(stamp) << np.uint64(ITEM_BITS)
    while start < order.size and count < item.size:
        cost, stop, num_tied = costs[order[start]], start, ZERO
        while stop < order.size and costs[order[stop]] == cost:
            row = rows[order[stop]]
            if row < delta_row:
                size = np.int64(base.offsets[row + 1]) - np.int64(base.offsets[row])
                tied = ensure_capacity(tied, num_tied, size)
                num_tied = _copy_live(base_items, row, tied, num_tied)
            else:
                row -= delta_row
                size = np.int64(delta.offsets[row + 1]) - np.int64(delta.offsets[row])
                tied = ensure_capacity(tied, num_tied, size)
                num_tied = _copy_live(delta_items, row, tied, num_tied)
            stop += 1
        if stop - start > 1:  # the items of one bucket are ascending already
            tied[:num_tied].sort()
        count = _take_new(tied[:num_tied], cost, high, seen, item, distance, count)
        start = stop
    return count, tied


@kernel
def nearest_by_cost(base, delta, queries, margins, num_bits, item, distance):
    """Fills the items of least asymmetric distance, equal distances by item.

    Args:
      base: The large segment.
      delta: The small segment.
      queries: uint64 [m, t] or [m, t, w], the codes of each query.
      margins: float32 [m, t, q], finite and at least 0.
      num_bits: Code length q.
      item: int64 [m, k], filled; -1 where fewer exist.
      distance: float32 [m, k], filled; -1 likewise.
    """
    segments, delta_row = Segments(base, delta), base.offsets.size - 1
    num_codes, k = queries.shape[1], min(item.shape[1], base.items.size + delta.items.size)
    steps, order = np.empty((num_codes, num_bits), np.int64), np.empty(num_bits, np.int64)
    tables = np.empty((num_codes, (num_bits + 7) // 8, 256), np.int64)
    pivot_orders, found = new_pivot_orders(segments, num_bits), new_buckets_found(1024, num_bits)
    reach, radius = np.empty(num_codes, np.int64), np.empty(num_codes, np.int64)
    costs, rows, tied = np.empty(64, np.int64), np.empty(64, np.int64), np.empty(64, np.int64)
    cheapest, num_slots, stamp = np.empty(k, np.int64), 64, 0
    while num_slots < 4 * k:
        num_slots *= 2
    seen = np.zeros(num_slots, np.uint64)
    for m in range(queries.shape[0]):
        codes, nearest, enough, count = queries[m], item[m, :k], k + k // 2, ZERO
        unit = fill_steps(margins[m], steps)
        for t in range(num_codes):
            fill_tables(steps[t], tables[t])
        reach[:] = -1
        while count < k and reach.min() < num_bits:  # near codes, for a bound
            used = ZERO
            for t in range(num_codes):
                while not _read_near(segments, codes[t], num_bits, enough, pivot_orders, found):
                    found = with_twice_the_capacity(found)
                reach[t], more = found.counters[REACH], found.counters[NUM_FOUND]
                costs, rows = ensure_capacity(costs, used, more), ensure_capacity(rows, used, more)
                used = _append_costs(
                    base.keys, delta.keys, delta_row, found, codes[t], tables[t], NO_LIMIT,
                    Costed(costs, rows), used,
                )  # fmt: skip
            stamp += 1
            count, tied = _rank(
                segments, costs[:used], rows[:used], seen, stamp, tied, nearest, cheapest
            )
            enough *= 2
        if count == k and k > 0:  # all codes that cost no more than the k-th item's
            for t in range(num_codes):
                radius[t] = _largest_radius(steps[t], order, cheapest[k - 1])
            if (radius > reach).any():
                bound, used = cheapest[k - 1], ZERO
                for t in range(num_codes):
                    while not find_ball(
                        segments, codes[t], num_bits, radius[t], False, pivot_orders, found
                    ):
                        found = with_twice_the_capacity(found)
                    more = found.counters[NUM_FOUND]
                    costs = ensure_capacity(costs, used, more)
                    rows = ensure_capacity(rows, used, more)
                    used = _append_costs(
                        base.keys, delta.keys, delta_row, found, codes[t], tables[t], bound,
                        Costed(costs, rows), used,
                    )  # fmt: skip
                stamp += 1
                count, tied = _rank(
                    segments, costs[:used], rows[:used], seen, stamp, tied, nearest, cheapest
                )
        item[m, count:] = -1
        distance[m, count:] = -1
        for i in range(count):
            distance[m, i] = cheapest[i] * unit
