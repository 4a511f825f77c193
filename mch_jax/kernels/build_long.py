"""Kernels that make the arrays of a segment from codes of several words, uint64 [c, w]."""

import numpy as np

from mch_jax.kernels.bits import fill_distances, hash_of_row
from mch_jax.kernels.jit import kernel, leaf
from mch_jax.kernels.segment import NO_LIMIT


@kernel
def hashes(words):
    """Returns the hash of each code."""
    hashed = np.empty(len(words), np.uint64)
    for row in range(len(words)):
        hashed[row] = hash_of_row(words, row)
    return hashed


@leaf
def _compare(words, one, other):
    """Returns -1, 0 or 1 as one code is below, equal to or above another in some total order."""
    for j in range(words.shape[1]):
        if words[one, j] != words[other, j]:
            return -1 if words[one, j] < words[other, j] else 1
    return 0


@kernel
def group_by_code(words, hashed, order, items):
    """Returns the first row, the offsets and the items of the bucket of each distinct code.

    Buckets come by ascending hash of their codes, and different codes of equal hash by code.

    Args:
      words: uint64 [c, w].
      hashed: uint64 [c], the hash of each code.
      order: int64 [c], the rows by ascending hash; rows of equal hash are sorted by code.
      items: uint32 [c], the item of each row.

    Returns:
      rows uint64 [d], offsets uint32 [d + 1] and items uint32, ascending and distinct in a bucket.
    """
    for i in range(1, order.size):  # nothing moves unless two codes have the same hash
        row, j = order[i], i
        while (
            j > 0 and hashed[order[j - 1]] == hashed[row] and _compare(words, row, order[j - 1]) < 0
        ):
            order[j] = order[j - 1]
            j -= 1
        order[j] = row
    rows, offsets = np.empty(order.size, np.uint64), np.zeros(order.size + 1, np.uint32)
    kept = np.empty(order.size, np.uint32)
    bucket = np.empty(order.size, np.uint32)
    num_keys, num_items, start = 0, 0, 0
    while start < order.size:
        stop = start
        while stop < order.size and _compare(words, order[start], order[stop]) == 0:
            bucket[stop] = items[order[stop]]
            stop += 1
        if stop - start > 1:
            bucket[start:stop].sort()
        for i in range(start, stop):
            if i == start or bucket[i] != bucket[i - 1]:
                kept[num_items] = bucket[i]
                num_items += 1
        rows[num_keys] = order[start]
        num_keys += 1
        offsets[num_keys] = num_items
        start = stop
    return rows[:num_keys].copy(), offsets[: num_keys + 1].copy(), kept[:num_items].copy()


@kernel
def fill_blocks(words, rows, blocks):
    """Fills blocks of codes with some rows of `words`, and what remains of the last with zeros."""
    for i in range(blocks.shape[0] * blocks.shape[2]):
        for j in range(words.shape[1]):
            blocks[i >> 3, j, i & 7] = words[rows[i], j] if i < rows.size else np.uint64(0)


@kernel
def assign_rings(words, rows, pivots, num_pivots, num_bits):
    """Returns the ring of some rows of `words`: nearest pivot * (num_bits + 1) + the distance.

    Args:
      words: uint64 [c, w].
      rows: uint64 [d].
      pivots: uint64 [blocks, w, 8], in blocks.
      num_pivots: Number of pivots.
      num_bits: Code length q.
    """
    ring, distances = np.empty(rows.size, np.int64), np.empty(8 * len(pivots), np.int64)
    for i in range(rows.size):
        for block in range(len(pivots)):
            fill_distances(pivots, block, words[rows[i]], distances)
        best = NO_LIMIT
        for pivot in range(num_pivots):
            best = min(best, distances[pivot] << 32 | pivot)
        ring[i] = (best & 0xFFFFFFFF) * (num_bits + 1) + (best >> 32)
    return ring
