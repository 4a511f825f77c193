"""Compiled kernels of the measures, on the CPU: items per distance and relevance, buckets visited.

The items pass by in blocks that stay in the cache while every query is compared with them; the
query x database matrix never exists. XOR, popcount, minimum and label test are loops that LLVM
turns into vector instructions; one scalar increment an item is left.
"""

import numpy as np

from mch_jax.kernels.index_kernels import (
    hamming,
    kernel,
    mask_rank,
    near,
    popcount,
    room,
    trailing_zeros,
)

BLOCK = 8192  # items that every query is compared with before the next ones: 384 KiB of six codes
PIECE = 1024  # items whose distances and bins lie in the nearest cache; a multiple of 4

_LANE, _MASK = np.uint64(16), np.uint64(0xFFFF)  # four bins in a word


@kernel
def distances(codes, query, near):
    """Fills `near` with the distance between a query's word and each code."""
    for i in range(codes.size):
        near[i] = popcount(codes[i] ^ query)


@kernel
def nearer(codes, query, near):
    """Lowers `near` to the distance between a query's word and each code, where that is less."""
    for i in range(codes.size):
        near[i] = min(near[i], popcount(codes[i] ^ query))


@kernel
def add_distances(codes, query, distance):
    """Adds the distance between a query's word and each code."""
    for i in range(codes.size):
        distance[i] += popcount(codes[i] ^ query)


@kernel
def lower(near, distance):
    """Lowers `near` to `distance` where that is less."""
    for i in range(near.size):
        near[i] = min(near[i], distance[i])


@kernel
def shares(labels, label, shared):
    """Fills `shared` with whether a query's label word and each item's have a bit in common."""
    for i in range(labels.size):
        shared[i] = (labels[i] & label) != 0


@kernel
def shares_too(labels, label, shared):
    """Sets `shared` where a query's label word and an item's have a bit in common."""
    for i in range(labels.size):
        shared[i] |= (labels[i] & label) != 0


@kernel
def to_bins(near, shared, bins):
    """Fills `bins` with 2 * distance + whether a label is shared."""
    for i in range(near.size):
        bins[i] = np.uint16(near[i] << near.dtype.type(1)) | np.uint16(shared[i])


@kernel
def count(bins, a, b, c, d):
    """Counts bins, four in a word: in one table, equal ones in a row would wait for each other."""
    for i in range(bins.size):
        word = bins[i]
        a[word & _MASK] += np.uint32(1)
        b[(word >> _LANE) & _MASK] += np.uint32(1)
        c[(word >> np.uint64(2) * _LANE) & _MASK] += np.uint32(1)
        d[word >> np.uint64(3) * _LANE] += np.uint32(1)


@kernel
def label_histogram(queries, codes, query_labels, labels, counts):
    """Adds to `counts` [m, 2 (q + 1)] the items of each bin, 2 * distance + relevance.

    Args:
      queries: words [m, w] of the queries' codes.
      codes: words [t, w, n] of the items' codes, of the same type.
      query_labels: uint64 words [m, lw] of the queries' labels.
      labels: uint64 words [lw, n] of the items' labels.
      counts: int64, changed.
    """
    num_codes, num_words, num_items = codes.shape
    near_all, distance_all = np.empty(PIECE, codes.dtype), np.empty(PIECE, codes.dtype)
    shared_all, bins = np.zeros(PIECE, np.uint8), np.zeros(PIECE, np.uint16)
    tables = np.zeros((4, counts.shape[1]), np.uint32)
    for start in range(0, num_items, BLOCK):
        end = min(start + BLOCK, num_items)
        for m in range(queries.shape[0]):
            for first in range(start, end, PIECE):
                last = min(first + PIECE, end)
                size = last - first
                near, shared = near_all[:size], shared_all[:size]
                distances(codes[0, 0, first:last], queries[m, 0], near)
                for w in range(1, num_words):
                    add_distances(codes[0, w, first:last], queries[m, w], near)
                for t in range(1, num_codes):
                    if num_words == 1:
                        nearer(codes[t, 0, first:last], queries[m, 0], near)
                        continue
                    distance = distance_all[:size]
                    distances(codes[t, 0, first:last], queries[m, 0], distance)
                    for w in range(1, num_words):
                        add_distances(codes[t, w, first:last], queries[m, w], distance)
                    lower(near, distance)
                for w in range(labels.shape[0]):
                    if w == 0:
                        shares(labels[w, first:last], query_labels[m, w], shared)
                    else:
                        shares_too(labels[w, first:last], query_labels[m, w], shared)
                to_bins(near, shared, bins[:size])
                whole = size - size % 4
                words = bins[:whole].view(np.uint64)
                count(words, tables[0], tables[1], tables[2], tables[3])
                for i in range(whole, size):
                    tables[0, bins[i]] += np.uint32(1)
            for b in range(counts.shape[1]):
                counts[m, b] += np.int64(tables[0, b] + tables[1, b] + tables[2, b] + tables[3, b])
            tables[:] = 0


@kernel
def select(values, low, place):
    """Moves the value that sorting would put at `place` there, smaller ones of low.. before it."""
    high = values.size - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            return


@kernel
def group_by_distance(keys, query, reach, rows, starts):
    """Returns the rows of the keys within reach by distance; distance d begins at starts[d]."""
    count = np.int64(0)
    for begin in range(0, keys.size, 64):
        hits = near(keys, begin, min(begin + 64, keys.size), query, reach)
        rows = room(rows, count, np.int64(64))
        while hits:
            rows[count] = begin + trailing_zeros(hits)
            hits &= hits - np.uint64(1)
            count += 1
    starts[:] = 0
    for row in rows[:count]:
        starts[hamming(keys[row], query) + 1] += 1
    for i in range(starts.size - 1):
        starts[i + 1] += starts[i]
    place, grouped = starts.copy(), np.empty_like(rows)
    for row in rows[:count]:
        distance = hamming(keys[row], query)
        grouped[place[distance]] = row
        place[distance] += 1
    return grouped


@kernel
def visits(keys, offsets, items, queries, within, ks, binomials, probed, nonempty):
    """Fills how many buckets Algorithm 1 looks at up to the k-th item, for several k at a time.

    The radius of the k-th item is known. There, each new item is met at the smallest flip mask of
    its codes, so that the (k - items nearer)-th smallest of these masks is the last bucket's:
    selected, not sorted.

    Args:
      keys: uint64 [d], the distinct codes.
      offsets: [d + 1], where the items of each begin in `items`.
      items: [c], every code's items.
      queries: uint64 [m].
      within: int64 [m, q + 1], items within each distance of each query.
      ks: int64 [k], ascending, no larger than the number of items.
      binomials: uint64, C(n, i).
      probed: float64 [m, k], changed: buckets up to that of the k-th item, empty ones too.
      nonempty: int64 [m, k], changed: those that hold a code.
    """
    width = within.shape[1]
    num_items = np.int64(items.max()) + 1 if items.size else 0
    met, mask_of = np.zeros(num_items, np.int64), np.empty(num_items, np.uint64)
    fresh, masks = np.empty(num_items, np.int64), np.empty(num_items, np.uint64)
    rows, starts = np.empty(1024, np.int64), np.zeros(width + 1, np.int64)
    for m in range(queries.size):
        query, reach = queries[m], 0
        while within[m, reach] < ks[-1]:
            reach += 1
        rows = group_by_distance(keys, query, np.int64(reach), rows, starts)
        turn, smaller, nearer = 0, np.uint64(0), np.int64(0)
        first = (m + 1) * (width + 1)  # met[item] - first: distance at which this query met it
        for distance in range(reach + 1):
            inside = rows[starts[distance] : starts[distance + 1]]
            now, count = first + distance, 0
            for row in inside:
                mask = keys[row] ^ query
                for i in range(np.int64(offsets[row]), np.int64(offsets[row + 1])):
                    item = items[i]
                    if met[item] < first:
                        met[item], mask_of[item] = now, mask
                        fresh[count] = item
                        count += 1
                    elif met[item] == now:
                        mask_of[item] = min(mask_of[item], mask)
            begin = 0
            if ks[turn] <= within[m, distance]:
                for i in range(count):
                    masks[i] = mask_of[fresh[i]]
            while turn < ks.size and ks[turn] <= within[m, distance]:
                place = ks[turn] - nearer - 1
                select(masks[:count], begin, place)
                last, begin, occupied = masks[place], place, starts[distance]
                for row in inside:
                    occupied += (keys[row] ^ query) <= last
                probed[m, turn] = np.float64(smaller + mask_rank(last, binomials) + np.uint64(1))
                nonempty[m, turn] = occupied
                turn += 1
            if turn == ks.size:
                break
            nearer = within[m, distance]
            smaller += binomials[width - 1, distance]
