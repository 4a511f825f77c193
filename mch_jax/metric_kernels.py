"""Compiled kernel of the measures: items per distance and relevance, on the CPU.

The items pass by in blocks that stay in the cache while every query is compared with them; the
query x database matrix never exists. XOR, popcount, minimum and label test are loops that LLVM
turns into vector instructions; one scalar increment an item is left.
"""

import numpy as np

from mch_jax.index_kernels import kernel, popcount

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
