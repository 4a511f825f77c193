"""Kernel that looks at buckets by ascending quantization distance.

The buckets are listed first and looked up in blocks, so that the memory accesses of a block overlap
instead of waiting for each other.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from mch_jax.kernels.arrays import ensure_capacity
from mch_jax.kernels.bits import mix, prefetch
from mch_jax.kernels.jit import kernel, leaf
from mch_jax.kernels.masks import fill_cheapest_masks, fill_steps
from mch_jax.kernels.segment import (
    DIRECT_BITS,
    ITEM_BITS,
    NO_LIMIT,
    ZERO,
    BucketItems,
    find_row,
    first_slot,
    has_bit,
)

BLOCK = 64  # buckets that are looked up at once
FIRST_SIZE = 256  # buckets listed at first, if the number of items may end the search
GROWTH = 4  # how many times as many are listed after that


class Frontier(NamedTuple):
    """The buckets of one query in the order of probing. Kernels change the arrays in place.

    Attributes:
      costs: For each code of the query, the costs of its cheapest flip masks, ascending.
      masks: These masks.
      heads: Number of masks of each code that were merged.
      slots: Hash table of the buckets listed, where a query has several codes.
      stamps: The list that a slot belongs to; slots of earlier lists are empty.
    """

    costs: Int64[np.ndarray, "t size"]
    masks: UInt64[np.ndarray, "t size"]
    heads: Int64[np.ndarray, " t"]
    slots: UInt64[np.ndarray, " slots"]
    stamps: Int64[np.ndarray, " slots"]


class Block(NamedTuple):
    """Buckets that are looked up at once.

    Attributes:
      codes: Their codes.
      costs: Their quantization distances, in steps.
      rows: Their rows in the base, or -1.
      delta_rows: Their rows in the delta, or -1.
    """

    codes: UInt64[np.ndarray, " block"]
    costs: Int64[np.ndarray, " block"]
    rows: Int64[np.ndarray, " block"]
    delta_rows: Int64[np.ndarray, " block"]


class Met(NamedTuple):
    """The items found so far.

    Attributes:
      item: Items of this query, in the order found.
      cost: Cost of the bucket in which each was found.
      seen: Hash table of this query's items, as stamp << ITEM_BITS | item; slots with another
        query's stamp are empty.
      bits: In place of `seen`, if it is not empty: one bit per item.
    """

    item: Int64[np.ndarray, " size"]
    cost: Float32[np.ndarray, " size"]
    seen: UInt64[np.ndarray, " slots"]
    bits: UInt64[np.ndarray, " words"]


@leaf
def _is_listed(frontier, code, stamp):
    """Returns whether a bucket was listed already; afterwards it is."""
    slots, stamps = frontier.slots, frontier.stamps
    slot = np.int64(mix(code) & np.uint64(slots.size - 1))
    while stamps[slot] == stamp:
        if slots[slot] == code:
            return True
        slot = (slot + 1) & (slots.size - 1)
    slots[slot], stamps[slot] = code, stamp
    return False


@leaf
def _list_block(frontier, codes, stamp, count, block):
    """Fills a block with the next `count` buckets, each once, by cost, flip mask and code.

    Args:
      frontier: The masks of each code; changed.
      codes: uint64 [t], the codes of the query.
      stamp: Number of this list.
      count: Number of buckets, at most as many as there are.
      block: Filled.
    """
    costs, masks, heads = frontier.costs, frontier.masks, frontier.heads
    if codes.size == 1:
        for i in range(count):
            block.costs[i] = costs[0, heads[0] + i]
            block.codes[i] = codes[0] ^ masks[0, heads[0] + i]
        heads[0] += count
        return
    i = 0
    while i < count:
        nearest, cost, mask = ZERO, NO_LIMIT, np.uint64(0)
        for t in range(codes.size):
            if heads[t] < costs.shape[1]:
                own_cost, own_mask = costs[t, heads[t]], masks[t, heads[t]]
                if own_cost < cost or (own_cost == cost and own_mask < mask):
                    nearest, cost, mask = t, own_cost, own_mask
        heads[nearest] += 1
        code = codes[nearest] ^ mask
        if not _is_listed(frontier, code, stamp):
            block.costs[i], block.codes[i] = cost, code
            i += 1


@leaf
def look_up(segment, codes, num_bits, rows):
    """Fills the rows of codes, or -1, and returns the number of their items."""
    keys, offsets, items, table = segment.keys, segment.offsets, segment.items, segment.table
    rows[:] = -1
    if keys.size == 0:
        return ZERO
    if num_bits > DIRECT_BITS:
        for i in range(len(codes)):
            prefetch(table, first_slot(table, keys, codes[i]))
    for i in range(len(codes)):
        rows[i] = find_row(table, keys, codes[i], num_bits)
        if rows[i] >= 0:
            prefetch(offsets, rows[i])
    count = ZERO
    for row in rows:
        if row >= 0:
            count += np.int64(offsets[row + 1]) - np.int64(offsets[row])
            prefetch(items, np.int64(offsets[row]))
    return count


@leaf
def is_new(seen, entry):
    """Returns whether an item of this query is new to the hash table; afterwards it is not."""
    stamp = entry >> np.uint64(ITEM_BITS)
    slot = np.int64(mix(entry) & np.uint64(seen.size - 1))
    while seen[slot] >> np.uint64(ITEM_BITS) == stamp:
        if seen[slot] == entry:
            return False
        slot = (slot + 1) & (seen.size - 1)
    seen[slot] = entry
    return True


@leaf
def _is_new_bit(bits, item):
    """Returns whether an item of this query is new to the bitmap; afterwards it is not."""
    word, bit = item >> 6, np.uint64(1) << np.uint64(item & 63)
    old = bits[word]
    bits[word] = old | bit
    return old & bit == np.uint64(0)


@leaf
def clear_bits(bits, items):
    """Removes the items of a query from the bitmap."""
    if bits.size:
        for item in items:
            bits[item >> 6] = 0


@leaf
def _take_whole_bucket(buckets, row, cost, met, used):
    """Appends a bucket's items like `_take_bucket`, where none was removed and all may be taken."""
    item, bits, first = met.item, met.bits, used
    start, stop = np.int64(buckets.offsets[row]), np.int64(buckets.offsets[row + 1])
    for i in range(start, stop):
        one = np.int64(buckets.items[i])
        item[used] = one  # overwritten by the next, if it is not new
        used += _is_new_bit(bits, one)
    met.cost[first:used] = cost
    return used, stop - start


@leaf
def _next_live(buckets, position, stop):
    """Returns the position of the next item that was not removed, or `stop`."""
    if buckets.dead.size:
        while position < stop and has_bit(buckets.dead, buckets.items[position]):
            position += 1
    return position


@leaf
def _take_bucket(base, delta, row, delta_row, cost, limit, stamp, met, used):
    """Appends a bucket's items that were not met before, ascending.

    Args:
      base: The items of the base.
      delta: The items of the delta.
      row: The bucket's row in the base, or -1.
      delta_row: Its row in the delta, or -1.
      cost: Its quantization distance.
      limit: Number of items at which to stop.
      stamp: Number of this query, from 1.
      met: The items met; changed.
      used: Number of items in `met.item`.

    Returns:
      The new number of items, and the number of codes read.
    """
    i, stop, j, delta_stop, read = ZERO, ZERO, ZERO, ZERO, 0
    if row >= 0:
        i, stop = np.int64(base.offsets[row]), np.int64(base.offsets[row + 1])
    if delta_row >= 0:
        j = np.int64(delta.offsets[delta_row])
        delta_stop = np.int64(delta.offsets[delta_row + 1])
    if delta_row < 0 and base.dead.size == 0 and met.bits.size and stop - i < limit - used:
        return _take_whole_bucket(base, row, cost, met, used)
    high = np.uint64(stamp) << np.uint64(ITEM_BITS)
    while used < limit:
        i = _next_live(base, i, stop)
        item = np.int64(base.items[i]) if i < stop else NO_LIMIT
        delta_item = np.int64(delta.items[j]) if j < delta_stop else NO_LIMIT
        if item == NO_LIMIT and delta_item == NO_LIMIT:
            break
        i += item <= delta_item
        j += delta_item <= item
        item = min(item, delta_item)
        read += 1
        if met.bits.size:
            new = _is_new_bit(met.bits, item)
        else:
            new = is_new(met.seen, high | np.uint64(item))
        if new:
            met.item[used], met.cost[used] = item, cost
            used += 1
    return used, read


@leaf
def take_block(base, delta, block, count, unit, limit, stamp, met, used):
    """Appends the items of the first `count` buckets of a block, as `_take_bucket` does.

    Args:
      base: The items of the base.
      delta: The items of the delta.
      block: Buckets that were looked up.
      count: Number of these buckets.
      unit: The margin that is one step of their costs.
      limit: Number of items at which to stop.
      stamp: Number of this query, from 1.
      met: The items met; changed.
      used: Number of items in `met.item`.

    Returns:
      The number of buckets looked at, that of those with items, that of codes read, and the new
      number of items.
    """
    looked_at, nonempty, candidates = 0, 0, 0
    for i in range(count):
        looked_at += 1
        if block.rows[i] < 0 and block.delta_rows[i] < 0:
            continue
        used, read = _take_bucket(
            base, delta, block.rows[i], block.delta_rows[i], np.float32(block.costs[i] * unit),
            limit, stamp, met, used,
        )  # fmt: skip
        nonempty += read > 0
        candidates += read
        if used == limit:
            break
    return looked_at, nonempty, candidates, used


@kernel
def with_room(met, used, num_new, stamp):
    """Returns `met`, or larger copies of its arrays if `num_new` more items do not fit.

    Args:
      met: The items met.
      used: Number of items in `met.item`.
      num_new: Number of items that may follow.
      stamp: Number of this query.
    """
    item, cost = met.item, met.cost
    item, cost = ensure_capacity(item, used, num_new), ensure_capacity(cost, used, num_new)
    seen, num_slots = met.seen, met.seen.size
    while num_slots < 2 * (used + num_new):
        num_slots *= 2
    if num_slots > seen.size and met.bits.size == 0:
        seen = np.zeros(2 * num_slots, np.uint64)
        high = np.uint64(stamp) << np.uint64(ITEM_BITS)
        for one in item[:used]:
            is_new(seen, high | np.uint64(one))
    return Met(item, cost, seen, met.bits)


@kernel
def _new_frontier(num_codes, size):
    """Returns a `Frontier` with capacity for `size` buckets."""
    num_slots = 1
    while num_codes > 1 and num_slots < 2 * size:
        num_slots *= 2
    return Frontier(
        np.empty((num_codes, size), np.int64),
        np.empty((num_codes, size), np.uint64),
        np.zeros(num_codes, np.int64),
        np.empty(num_slots, np.uint64),
        np.zeros(num_slots, np.int64),
    )


@leaf
def _list_from_start(frontier, codes, steps, order, stamp, num_done, block):
    """Lists the cheapest masks of each code, and passes over the buckets that were looked at."""
    size = frontier.costs.shape[1]
    for t in range(codes.size):
        fill_cheapest_masks(steps[t], order, size, frontier.costs[t], frontier.masks[t])
    frontier.heads[:] = 0
    while num_done > 0:
        count = min(num_done, BLOCK)
        _list_block(frontier, codes, stamp, count, block)
        num_done -= count


class Answers(NamedTuple):
    """Arrays that the answers of several queries are written to.

    Attributes:
      bounds: The items of query i are those from bounds[i] to bounds[i + 1].
      item: Items of all queries, in the order found.
      cost: Cost of the bucket in which each was found.
      counts: Buckets looked at, non-empty ones, and codes read, for each query.
    """

    bounds: Int64[np.ndarray, " m+1"]
    item: Int64[np.ndarray, " size"]
    cost: Float32[np.ndarray, " size"]
    counts: Int64[np.ndarray, "3 m"]


@kernel
def has_answered(answers, m, met, used, probed, nonempty, candidates):
    """Writes the answer to query m; returns False if its items do not fit."""
    start = answers.bounds[m]
    if start + used > answers.item.size:
        return False
    answers.item[start : start + used] = met.item[:used]
    answers.cost[start : start + used] = met.cost[:used]
    answers.bounds[m + 1] = start + used
    answers.counts[0, m], answers.counts[1, m], answers.counts[2, m] = probed, nonempty, candidates
    return True


@kernel
def probed_items(base, delta, queries, margins, num_bits, budget, k, words, done, answers):
    """Looks at the buckets of least quantization distance of each query.

    Args:
      base: The large segment.
      delta: The small segment.
      queries: uint64 [m, t], the codes of each query.
      margins: float32 [m, t, q], finite and at least 0.
      num_bits: Code length q.
      budget: Number of buckets to look at, at most 2^q.
      k: Number of items at which to stop earlier.
      words: uint64, zeros, one bit per item; empty to use a hash table instead.
      done: Number of queries that are answered already.
      answers: Filled, up to the first query whose items do not fit.

    Returns:
      The number of queries that are answered, and the number of items of the next one, or 0.
    """
    num_queries, num_codes = queries.shape
    met = Met(
        np.empty(1024, np.int64), np.empty(1024, np.float32), np.zeros(2048, np.uint64), words
    )
    num_lists, first = 0, budget if k == NO_LIMIT else min(budget, FIRST_SIZE)
    first_frontier = _new_frontier(num_codes, first)
    steps, order = np.empty((num_codes, num_bits), np.int64), np.empty(num_bits, np.int64)
    block = Block(
        np.empty(BLOCK, np.uint64),
        np.empty(BLOCK, np.int64),
        np.empty(BLOCK, np.int64),
        np.empty(BLOCK, np.int64),
    )
    base_items = BucketItems(base.offsets, base.items, base.dead)
    delta_items = BucketItems(delta.offsets, delta.items, delta.dead)
    for m in range(done, num_queries):
        codes, stamp, used = queries[m], m + 1, ZERO
        unit = fill_steps(margins[m], steps)
        probed, nonempty, candidates = 0, 0, 0
        frontier, size = first_frontier, first
        num_lists += 1
        _list_from_start(frontier, codes, steps, order, num_lists, ZERO, block)
        while probed < budget and used < k:
            if probed == size:
                size = min(budget, GROWTH * size)
                frontier = _new_frontier(num_codes, size)
                num_lists += 1
                _list_from_start(frontier, codes, steps, order, num_lists, probed, block)
            count = min(BLOCK, size - probed)
            _list_block(frontier, codes, num_lists, count, block)
            num_items = look_up(base, block.codes[:count], num_bits, block.rows[:count])
            num_items += look_up(delta, block.codes[:count], num_bits, block.delta_rows[:count])
            met = with_room(met, used, min(num_items, k - used), stamp)
            looked_at, occupied, read, used = take_block(
                base_items, delta_items, block, count, unit, k, stamp, met, used
            )
            probed += looked_at
            nonempty += occupied
            candidates += read
        clear_bits(met.bits, met.item[:used])
        if not has_answered(answers, m, met, used, probed, nonempty, candidates):
            return m, used
    return num_queries, ZERO
