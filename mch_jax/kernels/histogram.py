"""Kernels that count items per distance and relevance, on the CPU.

Blocks of items that fit into the cache are compared with every query before the next block, and
the query x database matrix never exists in memory. XOR, popcount, minimum and the label test are
loops that LLVM turns into vector instructions. One scalar increment per item remains.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt16, UInt32

from mch_jax.kernels.bits import popcount
from mch_jax.kernels.jit import kernel

BLOCK = 8192  # items compared with every query before the next block; 384 KiB of six codes each
PIECE = 1024  # items whose distances and bins fit into the first-level cache; a multiple of 4


class Buffers(NamedTuple):
    """Arrays that counting overwrites.

    Attributes:
      near: Distance of each item of a piece.
      distance: Distance to one of its codes.
      bins: Bin of each item.
      tables: Four tables of counts.
    """

    near: Shaped[np.ndarray, " piece"]
    distance: Shaped[np.ndarray, " piece"]
    bins: UInt16[np.ndarray, " piece"]
    tables: UInt32[np.ndarray, "4 bins"]


_LANE, _MASK = np.uint64(16), np.uint64(0xFFFF)  # a word holds four bins


@kernel
def fill_distances(codes, query, near):
    """Fills `near` with the distance between a word of the query and that of each code."""
    for i in range(codes.size):
        near[i] = popcount(codes[i] ^ query)


@kernel
def lower_to_distances(codes, query, near):
    """Lowers `near` to the distance between the query's word and each code, where it is less."""
    for i in range(codes.size):
        near[i] = min(near[i], popcount(codes[i] ^ query))


@kernel
def add_distances(codes, query, distance):
    """Adds the distance between a word of the query and that of each code."""
    for i in range(codes.size):
        distance[i] += popcount(codes[i] ^ query)


@kernel
def lower_to(near, distance):
    """Lowers `near` to `distance` where that is less."""
    for i in range(near.size):
        near[i] = min(near[i], distance[i])


@kernel
def fill_shared(labels, label, shared):
    """Fills `shared` with whether the label words of the query and of each item intersect."""
    for i in range(labels.size):
        shared[i] = (labels[i] & label) != 0


@kernel
def add_shared(labels, label, shared):
    """Sets `shared` where the label words of the query and of an item intersect."""
    for i in range(labels.size):
        shared[i] |= (labels[i] & label) != 0


@kernel
def fill_bins(near, shared, bins):
    """Fills `bins` with 2 * distance + whether a label is shared."""
    for i in range(near.size):
        bins[i] = np.uint16(near[i] << near.dtype.type(1)) | np.uint16(shared[i])


@kernel
def count_bins(bins, a, b, c, d):
    """Counts bins, four in a word, in four tables.

    In a single table, consecutive increments of the same bin would wait for each other.
    """
    for i in range(bins.size):
        word = bins[i]
        a[word & _MASK] += np.uint32(1)
        b[(word >> _LANE) & _MASK] += np.uint32(1)
        c[(word >> np.uint64(2) * _LANE) & _MASK] += np.uint32(1)
        d[word >> np.uint64(3) * _LANE] += np.uint32(1)


@kernel
def fill_nearest(codes, first, query, near, distance):
    """Fills `near` with the distance between a query's code and the nearest code of each item.

    The items are sliced here, word by word, since a slice of the whole array is not known to be
    contiguous and its loops would not become vector instructions.

    Args:
      codes: [t, w, n], words of the items' codes.
      first: The first item; `near.size` items follow from there.
      query: [w], words of the query's code.
      near: Filled.
      distance: Overwritten, of the size of `near`.
    """
    num_codes, num_words, _ = codes.shape
    last = first + near.size
    fill_distances(codes[0, 0, first:last], query[0], near)
    for w in range(1, num_words):
        add_distances(codes[0, w, first:last], query[w], near)
    for t in range(1, num_codes):
        if num_words == 1:
            lower_to_distances(codes[t, 0, first:last], query[0], near)
            continue
        fill_distances(codes[t, 0, first:last], query[0], distance)
        for w in range(1, num_words):
            add_distances(codes[t, w, first:last], query[w], distance)
        lower_to(near, distance)


@kernel
def count_piece(bins, tables):
    """Counts the bins of a piece in four tables [4, 2 (q + 1)]."""
    whole = bins.size - bins.size % 4
    count_bins(bins[:whole].view(np.uint64), tables[0], tables[1], tables[2], tables[3])
    for i in range(whole, bins.size):
        tables[0, bins[i]] += np.uint32(1)


@kernel
def add_tables(tables, counts):
    """Adds the four tables to the counts of a query, and sets them to zero."""
    for b in range(counts.size):
        counts[b] += np.int64(tables[0, b] + tables[1, b] + tables[2, b] + tables[3, b])
    tables[:] = 0


@kernel
def new_buffers(codes, num_bins):
    """Returns the buffers that counting the items of a block for a query takes."""
    return Buffers(
        np.empty(PIECE, codes.dtype),
        np.empty(PIECE, codes.dtype),
        np.zeros(PIECE, np.uint16),
        np.zeros((4, num_bins), np.uint32),
    )


@kernel
def count_block(query, codes, start, relevant, buffers, counts):
    """Counts the items of each bin, 2 * distance + relevance, in a block for one query.

    Args:
      query: [w], words of the query's code.
      codes: [t, w, n], words of the items' codes, of the same dtype.
      start: The first item of the block.
      relevant: uint8 [block], 1 where an item is relevant.
      buffers: Overwritten; its tables are zero before and after.
      counts: int64 [2 (q + 1)]; the counts are added to it.
    """
    for first in range(0, relevant.size, PIECE):
        last = min(first + PIECE, relevant.size)
        near, bins = buffers.near[: last - first], buffers.bins[: last - first]
        fill_nearest(codes, start + first, query, near, buffers.distance[: last - first])
        fill_bins(near, relevant[first:last], bins)
        count_piece(bins, buffers.tables)
    add_tables(buffers.tables, counts)


@kernel
def label_histogram(queries, codes, query_labels, labels, counts):
    """Counts the items of each bin, 2 * distance + relevance, for each query.

    Args:
      queries: [m, w], words of the queries' codes.
      codes: [t, w, n], words of the items' codes, of the same dtype.
      query_labels: uint64 [m, lw], words of the queries' labels.
      labels: uint64 [lw, n], words of the items' labels.
      counts: int64 [m, 2 (q + 1)]; the counts are added to it.
    """
    num_items = codes.shape[2]
    buffers, shared = new_buffers(codes, counts.shape[1]), np.zeros(BLOCK, np.uint8)
    for start in range(0, num_items, BLOCK):
        end = min(start + BLOCK, num_items)
        relevant = shared[: end - start]
        for m in range(queries.shape[0]):
            for w in range(labels.shape[0]):
                if w == 0:
                    fill_shared(labels[w, start:end], query_labels[m, w], relevant)
                else:
                    add_shared(labels[w, start:end], query_labels[m, w], relevant)
            count_block(queries[m], codes, start, relevant, buffers, counts[m])


@kernel
def gather(row, columns, values):
    """Fills `values` with the values of a row in some columns."""
    for i in range(columns.size):
        values[i] = row[columns[i]]


@kernel
def relevance_histogram(queries, codes, relevant, columns, counts):
    """Counts the items of each bin, 2 * distance + relevance, for each query.

    Args:
      queries: [m, w], words of the queries' codes.
      codes: [t, w, n], words of the items' codes, of the same dtype.
      relevant: uint8 [m, columns], 1 where an item is relevant to a query.
      columns: int64 [n], the column of each item; empty if the items are all columns in order.
      counts: int64 [m, 2 (q + 1)]; the counts are added to it.
    """
    num_items = codes.shape[2]
    buffers, gathered = new_buffers(codes, counts.shape[1]), np.zeros(BLOCK, np.uint8)
    for start in range(0, num_items, BLOCK):
        end = min(start + BLOCK, num_items)
        for m in range(queries.shape[0]):
            row = relevant[m, start:end]
            if columns.size:
                row = gathered[: end - start]
                gather(relevant[m], columns[start:end], row)
            count_block(queries[m], codes, start, row, buffers, counts[m])
