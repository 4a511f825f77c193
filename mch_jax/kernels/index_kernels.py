"""Compiled kernels of the bucket index: build, probe, ring scan, ranking, checksum.

A segment holds the distinct codes ("buckets") sorted by their nearest pivot, by the distance to it
(the "ring") and by value. The triangle inequality bounds the rings that can hold a code within a
radius of the query, and those of one pivot lie side by side in memory, so that they are read with
one vectorised loop. `index.py` describes the parts that a user sees.

Integers are int64 unless they are codes (uint64): NumPy's rules would turn a mixture into floats.
Constants are passed on as ZERO and the like, since a literal argument compiles a function again.
"""

from typing import NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

NEAR = 7  # up to here reach grows stepwise
GROWTH = 3  # so many times the items are expected within one bit more
ROW_BITS = 40  # a found bucket is distance << ROW_BITS | row
ROW_MASK = (1 << ROW_BITS) - 1
DIRECT_BITS = 16  # up to so many bits a code is its own slot in the table
ZERO, NO_LIMIT = np.int64(0), np.int64(2**63 - 1)

kernel = numba.njit(nogil=True, cache=True, error_model="numpy")
# Numba counts references to arrays by atomic operations, in every call. What allocates nothing does
# without: that was a quarter of the time of a query.
leaf = numba.njit(nogil=True, cache=True, error_model="numpy", _nrt=False)


class Segment(NamedTuple):
    """One immutable set of buckets.

    Attributes:
      keys: uint64 [d], the distinct codes, sorted by nearest pivot, ring and value.
      offsets: uint32 [d + 1], where each bucket's items begin in `items`.
      items: uint32 [c], ascending and distinct within a bucket.
      pivots: uint64 [p].
      rings: uint32 [p * (q + 1) + 1], where the keys of each pivot at each distance begin.
      table: uint32 [slots]; 0 is empty, else row + 1. Up to DIRECT_BITS a slot for each code there
        can be, else open addressing, with a tag of the hash above the row.
      dead: uint64 [words], bit per removed item; no words as long as none was removed.
    """

    keys: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    pivots: np.ndarray
    rings: np.ndarray
    table: np.ndarray
    dead: np.ndarray


@intrinsic
def popcount(typingctx, word):
    """Returns the number of set bits of a uint64, as one instruction that LLVM can vectorise."""
    return word(word), lambda context, builder, signature, args: builder.ctpop(args[0])


@intrinsic
def cttz(typingctx, word):
    """Returns the number of zero bits below the lowest set one of a uint64; 64 for none."""
    return word(word), lambda context, builder, signature, args: builder.cttz(
        args[0], ir.IntType(1)(0)
    )


@intrinsic
def prefetch(typingctx, array, place):
    """Has the processor fetch an entry of an array into its cache, without waiting for it."""

    def generate(context, builder, signature, args):
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        fetch = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        fetch = cgutils.get_or_insert_function(builder.module, fetch, "llvm.prefetch.p0")
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        entry = builder.bitcast(builder.gep(data, [args[1]]), byte)
        builder.call(fetch, [entry, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.none(array, types.int64), generate


@leaf
def trailing_zeros(word):
    """Returns the place of the lowest set bit."""
    return np.int64(cttz(word))


@leaf
def hamming(a, b):
    """Returns the Hamming distance of two words."""
    return np.int64(popcount(a ^ b))


@kernel
def room(buffer, used, more):
    """Returns the buffer, at least doubled if `more` do not fit after the `used` first."""
    if used + more <= buffer.size:
        return buffer
    larger = np.empty(max(2 * buffer.size, used + more), buffer.dtype)
    larger[:used] = buffer[:used]
    return larger


# Build ---------------------------------------------------------------------------------------


@kernel
def distinct(codes, items):
    """Returns keys, offsets and items, ascending and without repeats, of codes already sorted."""
    keys = np.empty(codes.size, np.uint64)
    offsets = np.zeros(codes.size + 1, np.uint32)
    kept = np.empty(codes.size, np.uint32)
    num_keys, num_items, start = 0, 0, 0
    while start < codes.size:
        stop = start + 1
        while stop < codes.size and codes[stop] == codes[start]:
            stop += 1
        bucket = items[start:stop]
        if stop - start > 1:
            bucket.sort()
        for i in range(bucket.size):
            if i == 0 or bucket[i] != bucket[i - 1]:
                kept[num_items] = bucket[i]
                num_items += 1
        keys[num_keys] = codes[start]
        num_keys += 1
        offsets[num_keys] = num_items
        start = stop
    return keys[:num_keys].copy(), offsets[: num_keys + 1].copy(), kept[:num_items].copy()


@kernel
def choose_pivots(candidates, separation, limit):
    """Returns up to `limit` candidates, in their order, more than `separation` bits apart."""
    pivots = np.empty(limit, np.uint64)
    count = 0
    for candidate in candidates:
        near = False
        for i in range(count):
            if hamming(candidate, pivots[i]) <= separation:
                near = True
                break
        if not near:
            pivots[count] = candidate
            count += 1
            if count == limit:
                break
    return pivots[:count].copy()


@kernel
def assign(keys, pivots, num_bits):
    """Returns each key's ring: nearest pivot * (num_bits + 1) + the distance to it."""
    ring = np.empty(keys.size, np.int64)
    for row in range(keys.size):
        key, best = keys[row], np.uint64(NO_LIMIT)
        for i in range(pivots.size):
            best = min(best, popcount(key ^ pivots[i]) << np.uint64(32) | np.uint64(i))
        pivot = np.int64(best & np.uint64(0xFFFFFFFF))
        ring[row] = pivot * (num_bits + 1) + np.int64(best >> np.uint64(32))
    return ring


@kernel
def arrange(keys, offsets, items, ring, num_rings, sorted_keys):
    """Fills keys and returns offsets, items and rings after a stable counting sort by ring."""
    rings = np.zeros(num_rings + 1, np.uint32)
    for row in range(keys.size):
        rings[ring[row] + 1] += np.uint32(1)
    for i in range(num_rings):
        rings[i + 1] += rings[i]
    place = rings[:-1].astype(np.int64)
    order = np.empty(keys.size, np.int64)
    for row in range(keys.size):
        order[place[ring[row]]] = row
        place[ring[row]] += 1
    sorted_offsets, sorted_items = np.zeros_like(offsets), np.empty_like(items)
    used = 0
    for i in range(keys.size):
        row = order[i]
        sorted_keys[i] = keys[row]
        for j in range(np.int64(offsets[row]), np.int64(offsets[row + 1])):
            sorted_items[used] = items[j]
            used += 1
        sorted_offsets[i + 1] = used
    return sorted_offsets, sorted_items, rings


@leaf
def mix(code):
    """Returns a hash of a code, one-to-one."""
    code = (code ^ (code >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
    return (code ^ (code >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)


@kernel
def fill_table(keys, table, num_bits):
    """Enters the keys' rows into an empty table."""
    if num_bits <= DIRECT_BITS:
        for row in range(keys.size):
            table[np.int64(keys[row])] = np.uint32(row + 1)
        return
    bits = popcount(np.uint64(table.size - 1))
    for row in range(keys.size):
        hashed = mix(keys[row])
        slot = np.int64(hashed >> (np.uint64(64) - bits))
        while table[slot] != 0:
            slot = (slot + 1) & (table.size - 1)
        table[slot] = np.uint32((hashed << bits) | np.uint64(row + 1))


@kernel
def mark(items, bitmap):
    """Sets the bit of each item."""
    for item in items:
        bitmap[item >> np.uint32(6)] |= np.uint64(1) << np.uint64(item & np.uint32(63))


@leaf
def marked(bitmap, item):
    """Returns whether the bit of an item is set."""
    word = np.int64(item >> np.uint32(6))
    bit = np.uint64(item & np.uint32(63))
    return word < bitmap.size and (bitmap[word] >> bit) & np.uint64(1) == np.uint64(1)


# Finding buckets ------------------------------------------------------------------------------


@leaf
def lookup(table, keys, code, num_bits):
    """Returns the row of a code, or -1."""
    if num_bits <= DIRECT_BITS:
        return np.int64(table[np.int64(code)]) - 1
    bits = popcount(np.uint64(table.size - 1))
    hashed = mix(code)
    slot = np.int64(hashed >> (np.uint64(64) - bits))
    row_mask = (np.uint64(1) << bits) - np.uint64(1)
    tag = (hashed << bits) & np.uint64(0xFFFFFFFF)
    while True:
        entry = np.uint64(table[slot])
        if entry == np.uint64(0):
            return -1
        if entry & ~row_mask == tag:
            row = np.int64(entry & row_mask) - 1
            if keys[row] == code:
                return row
        slot = (slot + 1) & (table.size - 1)


@leaf
def live_size(offsets, items, dead, row):
    """Returns how many items of a bucket are left."""
    start, stop = np.int64(offsets[row]), np.int64(offsets[row + 1])
    if dead.size == 0:
        return stop - start
    count = 0
    for i in range(start, stop):
        count += not marked(dead, items[i])
    return count


@leaf
def probe(keys, offsets, table, first, query, num_bits, radius, state, found):
    """Looks up every code at exactly `radius`, appends to `found`; returns whether it had room.

    A found bucket is distance << ROW_BITS | first + row, where `first` tells the segments apart.
    `state` is (reach, buckets within reach, buckets found, entries of buckets found by probing).
    """
    flips = (np.uint64(1) << np.uint64(radius)) - np.uint64(1)
    last = flips << np.uint64((num_bits - radius) % 64)
    while True:
        row = lookup(table, keys, query ^ flips, num_bits)
        if row >= 0:
            if state[2] == found.size:
                return False
            found[state[2]] = (radius << ROW_BITS) | (first + row)
            state[2] += 1
            state[3] += np.int64(offsets[row + 1]) - np.int64(offsets[row])
        if flips == last:
            return True
        low = flips & (~flips + np.uint64(1))  # the next larger mask with as many bits (Gosper)
        carry = flips + low
        zeros = popcount(low - np.uint64(1))  # two shifts, as one by 64 would be undefined
        flips = carry | ((flips ^ carry) >> zeros >> np.uint64(2))


@intrinsic
def near_64(typingctx, codes, start, query, reach):
    """Returns bits that say which of the 64 codes from `start` on lie within reach of the query.

    Written as operations on vectors, which LLVM lowers to what the processor has; it finds no mask
    of a comparison in a loop.
    """

    def generate(context, builder, signature, args):
        word, number = ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(word, 64)
        array = context.make_array(signature.args[0])(context, builder, args[0])
        place = builder.gep(array.data, [args[1]])
        block = builder.load(builder.bitcast(place, vector.as_pointer()), align=8)
        zeros = ir.Constant(ir.VectorType(number, 64), [0] * 64)

        def splat(value):
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, number(0))
            return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)

        popcounts = ir.FunctionType(vector, [vector])
        popcounts = cgutils.get_or_insert_function(builder.module, popcounts, "llvm.ctpop.v64i64")
        distance = builder.call(popcounts, [builder.xor(block, splat(args[2]))])
        return builder.bitcast(builder.icmp_signed("<=", distance, splat(args[3])), word)

    return types.uint64(codes, types.int64, types.uint64, types.int64), generate


@leaf
def near(codes, start, stop, query, reach):
    """Returns bits that say which of up to 64 codes from `start` on lie within reach."""
    if start + 64 <= codes.size:
        mask = near_64(codes, start, query, reach)
        return (
            mask
            if stop - start >= 64
            else mask & ((np.uint64(1) << np.uint64(stop - start)) - np.uint64(1))
        )
    mask = np.uint64(0)
    for row in range(start, min(stop, start + 64)):
        mask |= np.uint64(hamming(codes[row], query) <= reach) << np.uint64(row - start)
    return mask


@leaf
def scan(keys, first, start, stop, query, need, state, hist, found):
    """Adds the buckets of rows start..stop within reach; lowers it once `need` of them are in.

    `hist` counts the buckets per distance. Nothing but the keys is read. Returns whether `found`
    had room.
    """
    reach, inside, count = state[0], state[1], state[2]
    begin = start & ~7  # a cache line of the keys: loads that cross one take half as long again
    before = np.uint64(start - begin)
    while begin < stop:
        if count + 64 > found.size:
            return False
        mask = near(keys, begin, stop, query, reach) >> before << before
        before = np.uint64(0)
        while mask:
            hit = begin + trailing_zeros(mask)
            mask &= mask - np.uint64(1)
            distance = hamming(keys[hit], query)
            if distance > reach:  # it fell within the block
                continue
            found[count] = (distance << ROW_BITS) | (first + hit)
            count += 1
            hist[distance] += 1
            inside += 1
            while inside - hist[reach] >= need:
                inside -= hist[reach]
                reach -= 1
        begin += 64
    state[0], state[1], state[2] = reach, inside, count
    return True


@leaf
def pivot_distances(pivots, query, order):
    """Fills `order` with distance << 32 | pivot, the nearest first, the others in any order."""
    nearest = NO_LIMIT
    for i in range(pivots.size):
        order[i] = (hamming(pivots[i], query) << 32) | i
        nearest = min(nearest, order[i])
    if pivots.size:
        order[0], order[nearest & 0xFFFFFFFF] = nearest, order[0]


@leaf
def near_pivots(order, bound, spare, starts):
    """Puts the pivots within `bound` right after the first, by distance; returns where they end."""
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
def collect(segment, first, query, num_bits, need, state, hist, found, order, spare, starts):
    """Finds every bucket within reach, nearest pivots first; returns whether `found` had room.

    With delta = d(query, pivot), a code x of that pivot within reach has
    delta - reach <= d(x, pivot) <= nearest + reach: the left by the triangle inequality, the right
    because x is no farther from its own pivot than from the query's nearest one.
    """
    keys, rings, width = segment.keys, segment.rings, num_bits + 1
    if segment.pivots.size == 0:
        return True
    nearest, own = order[0] >> 32, (order[0] & 0xFFFFFFFF) * width
    parts = 2 * width if need < NO_LIMIT else 1  # ring by ring outward, so that reach falls early
    for part in range(parts):
        step = (part + 1) // 2
        if step > state[0]:
            break
        low = high = nearest + (step if part % 2 == 0 else -step)
        if parts == 1:
            low, high = max(0, nearest - state[0]), min(num_bits, nearest + state[0])
        if low < 0 or high > num_bits:
            continue
        start, stop = np.int64(rings[own + low]), np.int64(rings[own + high + 1])
        if not scan(keys, first, start, stop, query, need, state, hist, found):
            return False
    for i in range(1, near_pivots(order, nearest + 2 * state[0], spare, starts)):
        delta, own = order[i] >> 32, (order[i] & 0xFFFFFFFF) * width
        low, high = max(0, delta - state[0]), min(num_bits, nearest + state[0])
        if low > high:
            break
        start, stop = np.int64(rings[own + low]), np.int64(rings[own + high + 1])
        if not scan(keys, first, start, stop, query, need, state, hist, found):
            return False
    return True


# Ranking items --------------------------------------------------------------------------------


@leaf
def by_distance(base, delta, state, found, grouped, starts):
    """Fills `grouped` with the rows of the found buckets within reach, by distance.

    Those at distance d lie from starts[d] to starts[d + 1]. Fetches their items on the way, all at
    once, as each access to memory takes long.
    """
    reach, first = state[0], base.keys.size
    starts[: reach + 3] = 0
    for i in range(state[2]):
        distance = found[i] >> ROW_BITS
        if distance <= reach:
            starts[distance + 2] += 1
    for i in range(reach + 2):
        starts[i + 1] += starts[i]
    for i in range(state[2]):
        distance = found[i] >> ROW_BITS
        if distance <= reach:
            row = found[i] & ROW_MASK
            grouped[starts[distance + 1]] = row
            starts[distance + 1] += 1
            if row < first:
                prefetch(base.offsets, row)
            else:
                prefetch(delta.offsets, row - first)
    for i in range(starts[reach + 1]):
        row = grouped[i]
        if row < first:
            prefetch(base.items, np.int64(base.offsets[row]))
        else:
            prefetch(delta.items, np.int64(delta.offsets[row - first]))


@leaf
def sift(masks, rows, parent, size):
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
    """Returns where a hash table of (item + 1) << 8 | distance holds an item, or would."""
    slot = np.int64(mix(np.uint64(item)) & np.uint64(seen.size - 1))
    while seen[slot] != 0 and seen[slot] >> 8 != np.int64(item) + 1:
        slot = (slot + 1) & (seen.size - 1)
    return slot


@leaf
def closer(seen, item, distance):
    """Returns whether an item was met at a smaller distance."""
    entry = seen[slot_of(seen, item)]
    return entry != 0 and (entry & 255) < distance


@leaf
def sort(values):
    """Sorts in place, by Shell's method: by insertion where there are few."""
    gap = 1
    while 9 * gap < values.size:
        gap = 3 * gap + 1
    while gap:
        for i in range(gap, values.size):
            value, j = values[i], i
            while j >= gap and values[j - gap] > value:
                values[j] = values[j - gap]
                j -= gap
            values[j] = value
        gap //= 3


@leaf
def unique(values, limit):
    """Sorts and drops repeats in place; returns how many are left, at most `limit`."""
    sort(values)
    count = 0
    for i in range(values.size):
        if count == limit:
            break
        if count == 0 or values[i] != values[count - 1]:
            values[count] = values[i]
            count += 1
    return count


@leaf
def take_bucket(offsets, items, dead, row, distance, k, seen, item, count):
    """Appends a bucket's new items until there are k; returns their number and if any is alive."""
    alive = False
    for i in range(np.int64(offsets[row]), np.int64(offsets[row + 1])):
        if dead.size and marked(dead, items[i]):
            continue
        alive = True
        slot = slot_of(seen, items[i])
        if seen[slot] == 0:
            seen[slot] = ((np.int64(items[i]) + 1) << 8) | distance
            item[count] = items[i]
            count += 1
            if count == k:
                break
    return count, alive


@leaf
def add_ties(offsets, items, dead, row, distance, need, seen, ties, count, limit):
    """Adds a bucket's smallest items below `limit` that no nearer bucket holds to `ties`.

    Returns:
      The number of ties and the limit: the largest of the `need` smallest, once these are known.
    """
    taken = 0
    for i in range(np.int64(offsets[row]), np.int64(offsets[row + 1])):
        one = items[i]
        if np.int64(one) >= limit or taken == need:
            break
        if (dead.size and marked(dead, one)) or closer(seen, one, distance):
            continue
        ties[count] = one
        count += 1
        taken += 1
        if count == ties.size:
            count = unique(ties[:count], need)
            limit = ties[count - 1] if count == need else NO_LIMIT
    return count, limit


@leaf
def smallest(base, delta, rows, distance, seen, ties, item):
    """Fills `item` with the smallest items of tied buckets that no nearer bucket holds."""
    need, count, limit, first = item.size, ZERO, NO_LIMIT, base.keys.size
    offsets, items, dead = base.offsets, base.items, base.dead
    late_offsets, late_items, none = delta.offsets, delta.items, delta.dead
    for row in rows:
        if row < first:
            count, limit = add_ties(
                offsets, items, dead, row, distance, need, seen, ties, count, limit
            )
        else:
            count, limit = add_ties(
                late_offsets, late_items, none, row - first, distance, need, seen, ties, count,
                limit,
            )  # fmt: skip
    unique(ties[:count], need)
    for i in range(need):
        item[i] = ties[i]


@leaf
def rank(base, delta, query, k, reach, grouped, starts, masks, seen, ties, item, distance):
    """Ranks the items of the grouped buckets as Algorithm 1 meets them.

    Returns:
      The number of items, the mask of the bucket that held the k-th and the non-empty buckets up to
      it. Fewer than k items: the mask means nothing.
    """
    seen[:] = 0
    keys, offsets, items, dead = base.keys, base.offsets, base.items, base.dead
    late_keys, late_offsets, late_items, none = delta.keys, delta.offsets, delta.items, delta.dead
    several, first = dead.size > 0 or late_keys.size > 0, keys.size
    count, nonempty = ZERO, 0
    mask = np.uint64(0)
    for radius in range(reach + 1):
        rows = grouped[starts[radius] : starts[radius + 1]]
        before, entries = count, count
        for row in rows:
            if entries < k and row < first:
                entries += np.int64(offsets[row + 1]) - np.int64(offsets[row])
        if entries < k and not several:  # the k-th item lies farther: any order will do
            nonempty += rows.size
            for row in rows:
                count, _ = take_bucket(offsets, items, dead, row, radius, k, seen, item, count)
        else:
            for i in range(rows.size):
                row = rows[i]
                masks[i] = query ^ (keys[row] if row < first else late_keys[row - first])
            for i in range(rows.size // 2 - 1, -1, -1):
                sift(masks, rows, i, rows.size)
            counted = False  # whether the bucket `mask` was counted: both segments may hold it
            for left in range(rows.size - 1, -1, -1):
                counted = counted and masks[0] == mask
                mask, row = masks[0], rows[0]
                if row < first:
                    count, alive = take_bucket(
                        offsets, items, dead, row, radius, k, seen, item, count
                    )
                else:
                    count, alive = take_bucket(
                        late_offsets, late_items, none, row - first, radius, k, seen, item, count
                    )
                if alive and not counted:
                    nonempty += 1
                    counted = True
                if count == k:
                    smallest(base, delta, rows, radius, seen, ties, item[before:])
                    break
                masks[0], masks[left] = masks[left], masks[0]
                rows[0], rows[left] = rows[left], rows[0]
                sift(masks, rows, ZERO, left)
        sort(item[before:count])
        distance[before:count] = radius
        if count == k:
            break
    return count, mask, nonempty


@leaf
def mask_rank(mask, binomials):
    """Returns how many masks with as many bits are smaller (combinatorial number system)."""
    total, ones = np.uint64(0), 0
    while mask:
        low = popcount((mask & (~mask + np.uint64(1))) - np.uint64(1))
        ones += 1
        total += binomials[np.int64(low), ones]
        mask &= mask - np.uint64(1)
    return total


@leaf
def next_reach(radius, count, nearest, k, num_bits):
    """Returns how far to look after only `count` items were found within `radius`.

    A query with nothing near, far even from its nearest pivot, is far from everything.
    """
    if radius < 0 or radius >= NEAR or (count == 0 and (radius > 1 or nearest > num_bits // 6)):
        return num_bits
    radius, expected = radius + 1, GROWTH * max(1, count)
    while expected < k:
        radius, expected = radius + 1, GROWTH * expected
    return min(radius, num_bits)


@leaf
def search_from(
    begin, base, delta, queries, turns, num_bits, k, probe_radius, binomials,
    item, distance, probed, nonempty, seen, ties, state, hist, starts, groups, order, later, spare,
    found, grouped, masks,
):  # fmt: skip
    """Answers the queries in turns[begin:]; returns the turn at which `found` lacked room.

    `grouped` and `masks` are as large as `found`.
    """
    first, nearest = base.keys.size, NO_LIMIT
    keys, offsets, table = base.keys, base.offsets, base.table
    late_keys, late_offsets, late_table = delta.keys, delta.offsets, delta.table
    for turn in range(begin, turns.size):
        m = turns[turn]
        query, count, mask, radius = queries[m], ZERO, np.uint64(0), np.int64(-1)
        need, nonempty[m] = k + k // 2, 0
        state[:] = 0
        while count < k:
            if radius < probe_radius:
                radius += 1
                state[0] = radius
                if not probe(keys, offsets, table, ZERO, query, num_bits, radius, state, found):
                    return turn
                if later.size and not probe(
                    late_keys, late_offsets, late_table, first, query, num_bits, radius, state,
                    found,
                ):  # fmt: skip
                    return turn
                if state[3] < k and radius < num_bits:  # the k-th item lies farther
                    count = state[3]
                    continue
            else:
                if radius == probe_radius:
                    pivot_distances(base.pivots, query, order)
                    pivot_distances(delta.pivots, query, later)
                    nearest = order[0] >> 32 if order.size else ZERO
                if state[0] < radius:  # it fell for buckets that share items: ask for more
                    need *= 2
                elif radius == num_bits:
                    break
                else:
                    radius = next_reach(radius, count, nearest, k, num_bits)
                state[:], hist[:] = 0, 0
                state[0] = radius
                if not collect(
                    base, ZERO, query, num_bits, need, state, hist, found, order, spare, starts
                ):
                    return turn
                if later.size and not collect(
                    delta, first, query, num_bits, need, state, hist, found, later, spare, starts
                ):
                    return turn
            if state[2]:
                by_distance(base, delta, state, found, grouped, groups)
                count, mask, nonempty[m] = rank(
                    base, delta, query, k, state[0], grouped, groups, masks, seen, ties,
                    item[m], distance[m],
                )  # fmt: skip
        item[m, count:] = -1
        distance[m, count:] = -1
        probed[m] = 0
        if count == k:
            for nearer in range(distance[m, k - 1]):
                probed[m] += binomials[num_bits, nearer]
            probed[m] += mask_rank(mask, binomials) + np.uint64(1)
    return turns.size


@kernel
def search(
    base, delta, queries, turns, num_bits, k, probe_radius, binomials,
    item, distance, probed, nonempty,
):  # fmt: skip
    """Fills the k nearest items of the queries in `turns`; probed is 0 where fewer than k exist."""
    limit = min(k, base.items.size + delta.items.size)
    slots = 64
    while slots < 4 * limit:
        slots *= 2
    seen, ties = np.empty(slots, np.int64), np.empty(2 * limit + 16, np.int64)
    state, hist = np.zeros(4, np.int64), np.zeros(num_bits + 1, np.int64)
    starts, groups = np.zeros(num_bits + 2, np.int64), np.zeros(num_bits + 3, np.int64)
    order, later = np.empty(base.pivots.size, np.int64), np.empty(delta.pivots.size, np.int64)
    spare = np.empty(max(order.size, later.size), np.int64)
    turn, size = 0, 1024
    while turn < turns.size:
        found, grouped, masks = np.empty((3, size), np.int64)
        turn = search_from(
            turn, base, delta, queries, turns, num_bits, k, probe_radius, binomials,
            item, distance, probed, nonempty, seen, ties, state, hist, starts, groups, order, later,
            spare, found, grouped, masks.view(np.uint64),
        )  # fmt: skip
        size *= 2


@kernel
def radix_sort(values, spare):
    """Returns the values ascending, in either of the two buffers, by bytes that differ."""
    if values.size < 128:
        sort(values)
        return values
    counts = np.empty(257, np.int64)
    for shift in range(0, 40, 8):
        counts[:] = 0
        for value in values:
            counts[((value >> shift) & 255) + 1] += 1
        if counts[((values[0] >> shift) & 255) + 1] == values.size:
            continue
        for i in range(256):
            counts[i + 1] += counts[i]
        for value in values:
            digit = (value >> shift) & 255
            spare[counts[digit]] = value
            counts[digit] += 1
        values, spare = spare, values
    return values


@kernel
def take_entries(offsets, items, dead, row, distance, entries, count):
    """Appends item << 8 | distance of a bucket's items; returns the entries and their number."""
    start, stop = np.int64(offsets[row]), np.int64(offsets[row + 1])
    entries = room(entries, count, stop - start)
    for i in range(start, stop):
        if dead.size == 0 or not marked(dead, items[i]):
            entries[count] = (np.int64(items[i]) << 8) | distance
            count += 1
    return entries, count


@kernel
def nearest_first(entries, starts, item, distance):
    """Fills item and distance from sorted entries, each item once; returns how many there are."""
    starts[:] = 0
    kept = 0
    for entry in entries:  # an item's first entry is its nearest
        if kept == 0 or entry >> 8 != entries[kept - 1] >> 8:
            entries[kept] = entry
            starts[(entry & 255) + 1] += 1
            kept += 1
    for i in range(starts.size - 1):
        starts[i + 1] += starts[i]
    for entry in entries[:kept]:
        place = starts[entry & 255]
        item[place], distance[place] = entry >> 8, entry & 255
        starts[entry & 255] += 1
    return kept


@kernel
def num_buckets(base, delta, state, found):
    """Returns the number of distinct codes among found buckets that have an item left."""
    first, count = base.keys.size, ZERO
    codes = np.empty(state[2], np.int64)
    for i in range(state[2]):
        row = found[i] & ROW_MASK
        if row < first:
            codes[count] = np.int64(base.keys[row])
            count += live_size(base.offsets, base.items, base.dead, row) > 0
        else:
            codes[count] = np.int64(delta.keys[row - first])
            count += 1
    return unique(codes[:count], count)


@leaf
def exact_rows(keys, offsets, table, queries, num_bits, rows, bounds):
    """Fills the row of each query's own bucket, or -1, and where its items will begin."""
    bits = popcount(np.uint64(table.size - 1))
    for m in range(queries.size):
        ahead = m + 8
        if ahead < queries.size and num_bits > DIRECT_BITS:
            prefetch(table, np.int64(mix(queries[ahead]) >> (np.uint64(64) - bits)))
        row = lookup(table, keys, queries[m], num_bits)
        rows[m] = row
        bounds[m + 1] = bounds[m]
        if row >= 0:
            bounds[m + 1] += np.int64(offsets[row + 1]) - np.int64(offsets[row])


@leaf
def exact_items(offsets, items, rows, bounds, item, nonempty):
    """Fills the items of each query's own bucket."""
    for m in range(rows.size):
        nonempty[m] = rows[m] >= 0
        if rows[m] >= 0:
            start, stop = np.int64(offsets[rows[m]]), np.int64(offsets[rows[m] + 1])
            place = item[bounds[m] :]
            for i, one in enumerate(items[start:stop]):
                place[i] = one


@kernel
def exact(base, queries, num_bits):
    """Returns what `within` returns at radius 0, of a segment from which nothing was removed."""
    rows, bounds = np.empty(queries.size, np.int64), np.zeros(queries.size + 1, np.int64)
    exact_rows(base.keys, base.offsets, base.table, queries, num_bits, rows, bounds)
    item, nonempty = np.empty(bounds[queries.size], np.int64), np.empty(queries.size, np.int64)
    exact_items(base.offsets, base.items, rows, bounds, item, nonempty)
    return bounds, item, np.zeros(item.size, np.int32), nonempty


@leaf
def ball(
    base, delta, query, num_bits, radius, probing, state, hist, found, order, later, near, places
):
    """Finds every bucket within a radius; returns whether `found` had room."""
    first = base.keys.size
    hist[:], state[:] = 0, 0
    if probing:
        for r in range(radius + 1):
            if not probe(
                base.keys, base.offsets, base.table, ZERO, query, num_bits, r, state, found
            ):
                return False
            if later.size and not probe(
                delta.keys, delta.offsets, delta.table, first, query, num_bits, r, state, found
            ):
                return False
        return True
    state[0] = radius
    pivot_distances(base.pivots, query, order)
    pivot_distances(delta.pivots, query, later)
    return collect(
        base, ZERO, query, num_bits, NO_LIMIT, state, hist, found, order, near, places
    ) and collect(
        delta, first, query, num_bits, NO_LIMIT, state, hist, found, later, near, places
    )  # fmt: skip


@kernel
def within(base, delta, queries, num_bits, radius, probing):
    """Returns offsets [m + 1], item, distance and the non-empty buckets [m] within a radius."""
    bounds, nonempty = np.zeros(queries.size + 1, np.int64), np.zeros(queries.size, np.int64)
    item, distance = np.empty(1024, np.int64), np.empty(1024, np.int32)
    state, hist = np.zeros(4, np.int64), np.zeros(num_bits + 1, np.int64)
    found, entries, spare = np.empty(1024, np.int64), np.empty(64, np.int64), np.empty(64, np.int64)
    order, later = np.empty(base.pivots.size, np.int64), np.empty(delta.pivots.size, np.int64)
    near = np.empty(max(order.size, later.size), np.int64)
    places, starts = np.empty(num_bits + 2, np.int64), np.empty(radius + 2, np.int64)
    first = base.keys.size
    offsets, items, late_offsets, late_items = base.offsets, base.items, delta.offsets, delta.items
    dead, none = base.dead, delta.dead
    several = dead.size > 0 or delta.keys.size > 0
    for m in range(queries.size):
        query, used, count = queries[m], bounds[m], ZERO
        while not ball(
            base, delta, query, num_bits, radius, probing, state, hist, found, order, later, near,
            places,
        ):  # fmt: skip
            found = np.empty(2 * found.size, np.int64)
        if state[2] == 1 and not several:  # radius 0, mostly: one bucket, as it lies
            row, far = found[0] & ROW_MASK, found[0] >> ROW_BITS
            start, count = np.int64(offsets[row]), np.int64(offsets[row + 1] - offsets[row])
            item, distance = room(item, used, count), room(distance, used, count)
            for i in range(count):
                item[used + i], distance[used + i] = items[start + i], far
            bounds[m + 1], nonempty[m] = used + count, 1
            continue
        for i in range(state[2]):
            row, far = found[i] & ROW_MASK, found[i] >> ROW_BITS
            if row < first:
                entries, count = take_entries(offsets, items, dead, row, far, entries, count)
            else:
                entries, count = take_entries(
                    late_offsets, late_items, none, row - first, far, entries, count
                )
        nonempty[m] = num_buckets(base, delta, state, found) if several else state[2]
        bounds[m + 1] = used
        if count == 0:
            continue
        ordered = entries[:count]
        if state[2] > 1:
            spare = room(spare, ZERO, count)
            ordered = radix_sort(ordered, spare[:count])
        item, distance = room(item, used, count), room(distance, used, count)
        bounds[m + 1] = used + nearest_first(ordered, starts, item[used:], distance[used:])
    used = bounds[queries.size]
    return bounds, item[:used].copy(), distance[:used].copy(), nonempty


# Buckets in the order of Algorithm 1 -------------------------------------------------------------


@leaf
def fresh_items(segment, row, k, seen, count):
    """Returns how many of a bucket's items were not met before, and whether any is alive."""
    fresh, alive, dead = ZERO, False, segment.dead
    for i in range(np.int64(segment.offsets[row]), np.int64(segment.offsets[row + 1])):
        item = segment.items[i]
        if dead.size and marked(dead, item):
            continue
        alive = True
        if count + fresh < k:
            slot = slot_of(seen, item)
            fresh += seen[slot] == 0
            seen[slot] = (np.int64(item) + 1) << 8
    return fresh, alive


@kernel
def visits(base, delta, queries, num_bits, radii, k):
    """Returns the non-empty buckets that Algorithm 1 visits up to the k-th item of each query.

    Args:
      base: the large segment.
      delta: the small one.
      queries: uint64 [m].
      num_bits: q.
      radii: int64 [m], distance of the k-th item, or q where fewer exist; no bucket beyond counts.
      k: how many items.

    Returns:
      offsets [m + 1], and for each bucket its flip mask and how many items it is the first to hold.
    """
    bounds, used = np.zeros(queries.size + 1, np.int64), ZERO
    masks, fresh = np.empty(1024, np.uint64), np.empty(1024, np.int64)
    state, hist = np.zeros(4, np.int64), np.zeros(num_bits + 1, np.int64)
    order, later = np.empty(base.pivots.size, np.int64), np.empty(delta.pivots.size, np.int64)
    near, places = np.empty(max(order.size, later.size), np.int64), np.empty(num_bits + 2, np.int64)
    found, first = np.empty(1024, np.int64), base.keys.size
    slots = 64
    while slots < 4 * min(k, base.items.size + delta.items.size):
        slots *= 2
    seen = np.empty(slots, np.int64)
    for m in range(queries.size):
        query, count = queries[m], ZERO
        seen[:] = 0
        while not ball(
            base, delta, query, num_bits, radii[m], False, state, hist, found, order, later, near,
            places,
        ):  # fmt: skip
            found = np.empty(2 * found.size, np.int64)
        keys = np.empty(state[2], np.uint64)
        for i in range(state[2]):
            row = found[i] & ROW_MASK
            keys[i] = query ^ (base.keys[row] if row < first else delta.keys[row - first])
        by_mask = np.argsort(keys)
        by_mask = by_mask[np.argsort((found[: state[2]] >> ROW_BITS)[by_mask], kind="mergesort")]  # pyright: ignore[reportOperatorIssue]
        start = used
        for i in by_mask:
            if count == k and masks[used - 1] != keys[i]:
                break
            row = found[i] & ROW_MASK  # pyright: ignore[reportOperatorIssue]
            if row < first:
                new, alive = fresh_items(base, row, k, seen, count)
            else:
                new, alive = fresh_items(delta, row - first, k, seen, count)
            if not alive:
                continue
            count += new
            if used > start and masks[used - 1] == keys[i]:  # both segments hold it
                fresh[used - 1] += new
                continue
            masks, fresh = room(masks, used, np.int64(1)), room(fresh, used, np.int64(1))
            masks[used], fresh[used] = keys[i], new
            used += 1
        bounds[m + 1] = used
    return bounds, masks[:used].copy(), fresh[:used].copy()


# Checksum -------------------------------------------------------------------------------------


@kernel
def checksum(words):
    """Returns a 64-bit checksum of uint64 words, at the speed of memory.

    64 lanes of multiply and shift, then one over the lanes. Each step is one-to-one in the word and
    in what came before, so that a change confined to one word always shows. It guards against
    damage, not against malice.
    """
    lanes = np.arange(64).astype(np.uint64)
    factor = np.uint64(0x9E3779B97F4A7C15)
    whole = words.size // 64
    for i in range(whole):
        row = words[64 * i : 64 * i + 64]
        for j in range(64):
            lane = (lanes[j] ^ row[j]) * factor
            lanes[j] = lane ^ (lane >> np.uint64(32))
    total = np.uint64(words.size)
    for i in range(64 * whole, words.size):
        total = mix(total ^ words[i])
    for j in range(64):
        total = mix(total ^ lanes[j])
    return total
