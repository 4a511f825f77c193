"""Kernels that make the arrays of a segment from codes and items."""

import numpy as np

from mch_jax.kernels.bits import distance_to, hash_of_row, popcount
from mch_jax.kernels.jit import kernel
from mch_jax.kernels.segment import DIRECT_BITS, NO_LIMIT


@kernel
def group_by_code(codes, items):
    """Returns keys, offsets and items of the buckets of codes that are already sorted.

    Keys are ascending and distinct, and so are the items of each bucket.

    Args:
      codes: uint64 [c], ascending.
      items: uint32 [c], the item of each code; overwritten.
    """
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
    """Returns the first `limit` candidates that lie more than `separation` bits apart."""
    if candidates.ndim == 1:
        pivots = np.empty(limit, np.uint64)
    else:
        pivots = np.empty((limit, candidates.shape[1]), np.uint64)
    count = 0
    for row in range(candidates.shape[0]):
        candidate = candidates[row]
        near = False
        for i in range(count):
            if distance_to(pivots, i, candidate) <= separation:
                near = True
                break
        if not near:
            pivots[count] = candidate
            count += 1
            if count == limit:
                break
    return pivots[:count].copy()


@kernel
def assign_rings(keys, pivots, num_bits):
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
def sort_by_ring(keys, offsets, items, ring, num_rings, sorted_keys):
    """Sorts buckets by ring, keeping the order within a ring (counting sort).

    Args:
      keys: uint64 [d], the distinct codes.
      offsets: uint32 [d + 1], where the items of each begin.
      items: uint32 [c].
      ring: int64 [d], the ring of each key.
      num_rings: Number of rings.
      sorted_keys: uint64 [d], filled with the keys in their new order.

    Returns:
      offsets and items in the new order, and uint32 [num_rings + 1], where each ring begins.
    """
    rings = np.zeros(num_rings + 1, np.uint32)
    for row in range(keys.size):
        rings[ring[row] + 1] += np.uint32(1)
    for i in range(num_rings):
        rings[i + 1] += rings[i]
    next_row = rings[:-1].astype(np.int64)
    order = np.empty(keys.size, np.int64)
    for row in range(keys.size):
        order[next_row[ring[row]]] = row
        next_row[ring[row]] += 1
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


@kernel
def fill_table(keys, num_keys, table, num_bits):
    """Enters the row of every key into an empty table."""
    if keys.ndim == 1:  # noqa: SIM102 - numba leaves out a branch only if nothing else decides it
        if num_bits <= DIRECT_BITS:
            for row in range(keys.size):
                table[np.int64(keys[row])] = np.uint32(row + 1)
            return
    bits = popcount(np.uint64(table.size - 1))
    for row in range(num_keys):
        hashed = hash_of_row(keys, row)
        slot = np.int64(hashed >> (np.uint64(64) - bits))
        while table[slot] != 0:
            slot = (slot + 1) & (table.size - 1)
        table[slot] = np.uint32((hashed << bits) | np.uint64(row + 1))
