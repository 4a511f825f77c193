"""Kernel that counts the buckets Algorithm 1 visits, where the distances are known already."""

import numpy as np

from mch_jax.kernels.arrays import ensure_capacity, select
from mch_jax.kernels.bits import BINOMIALS, hamming, lowest_bit, mask_rank, mask_within
from mch_jax.kernels.jit import kernel


@kernel
def _rows_by_distance(keys, query, reach, rows, starts):
    """Returns the rows of the keys within reach by distance; distance d begins at starts[d]."""
    count = np.int64(0)
    for begin in range(0, keys.size, 64):
        hits = mask_within(keys, begin, min(begin + 64, keys.size), query, reach)
        rows = ensure_capacity(rows, count, np.int64(64))
        while hits:
            rows[count] = begin + lowest_bit(hits)
            hits &= hits - np.uint64(1)
            count += 1
    starts[:] = 0
    for row in rows[:count]:
        starts[hamming(keys[row], query) + 1] += 1
    for i in range(starts.size - 1):
        starts[i + 1] += starts[i]
    position, grouped = starts.copy(), np.empty_like(rows)
    for row in rows[:count]:
        distance = hamming(keys[row], query)
        grouped[position[distance]] = row
        position[distance] += 1
    return grouped


@kernel
def visit_counts(keys, offsets, items, queries, num_within, ks, probed, nonempty):
    """Fills how many buckets Algorithm 1 visits up to the k-th item, for several k at a time.

    The distance of the k-th item is known from `num_within`. There, each new item is met at the
    smallest flip mask of its codes, so that the (k - number of nearer items)-th smallest of these
    masks is that of the last bucket. It is found by selection, without sorting.

    Args:
      keys: uint64 [d], the distinct codes.
      offsets: [d + 1], where the items of each begin in `items`.
      items: [c], the items of every code.
      queries: uint64 [m].
      num_within: int64 [m, q + 1], number of items within each distance of each query.
      ks: int64 [k], ascending, no larger than the number of items.
      probed: float64 [m, k], filled with the buckets up to that of the k-th item, empty ones too.
      nonempty: int64 [m, k], filled with the number of these that hold a code.
    """
    width = num_within.shape[1]
    num_items = np.int64(items.max()) + 1 if items.size else 0
    met_at, mask_of = np.zeros(num_items, np.int64), np.empty(num_items, np.uint64)
    new_items, masks = np.empty(num_items, np.int64), np.empty(num_items, np.uint64)
    rows, starts = np.empty(1024, np.int64), np.zeros(width + 1, np.int64)
    for m in range(queries.size):
        query, reach = queries[m], 0
        while num_within[m, reach] < ks[-1]:
            reach += 1
        rows = _rows_by_distance(keys, query, np.int64(reach), rows, starts)
        turn, smaller, nearer = 0, np.uint64(0), np.int64(0)
        first = (m + 1) * (width + 1)  # met_at[item] - first is the distance for this query
        for distance in range(reach + 1):
            inside = rows[starts[distance] : starts[distance + 1]]
            now, count = first + distance, 0
            for row in inside:
                mask = keys[row] ^ query
                for i in range(np.int64(offsets[row]), np.int64(offsets[row + 1])):
                    item = items[i]
                    if met_at[item] < first:
                        met_at[item], mask_of[item] = now, mask
                        new_items[count] = item
                        count += 1
                    elif met_at[item] == now:
                        mask_of[item] = min(mask_of[item], mask)
            begin = 0
            if ks[turn] <= num_within[m, distance]:
                for i in range(count):
                    masks[i] = mask_of[new_items[i]]
            while turn < ks.size and ks[turn] <= num_within[m, distance]:
                position = ks[turn] - nearer - 1
                select(masks[:count], begin, position)
                last, begin, occupied = masks[position], position, starts[distance]
                for row in inside:
                    occupied += (keys[row] ^ query) <= last
                probed[m, turn] = np.float64(smaller + mask_rank(last) + np.uint64(1))
                nonempty[m, turn] = occupied
                turn += 1
            if turn == ks.size:
                break
            nearer = num_within[m, distance]
            smaller += BINOMIALS[width - 1, distance]
