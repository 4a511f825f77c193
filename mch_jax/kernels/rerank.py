"""Kernel that ranks some items of each query by asymmetric distance."""

import numpy as np

from mch_jax.kernels.asymmetric import cost_of, fill_tables
from mch_jax.kernels.jit import kernel, leaf
from mch_jax.kernels.masks import fill_steps
from mch_jax.kernels.segment import NO_LIMIT


@leaf
def _least_cost(words, items, one, queries, tables):
    """Returns the least cost of the codes of an item.

    Args:
      words: uint64 [c] or [c, w], codes by item.
      items: uint32 [c], the item of each code, ascending.
      one: The item.
      queries: uint64 [t] or [t, w], the codes of the query.
      tables: int64 [t, bytes, 256], the cost of every value of every byte of a flip mask.
    """
    least = NO_LIMIT
    row = np.searchsorted(items, one)
    while row < items.size and items[row] == one:
        for t in range(len(queries)):
            least = min(least, cost_of(words, row, queries[t], tables[t]))
        row += 1
    return least


@kernel
def cheapest_of(words, items, near, queries, margins, item, distance):
    """Fills the items of least asymmetric distance among some, equal distances by item.

    Args:
      words: uint64 [c] or [c, w], codes by item.
      items: uint32 [c], the item of each code, ascending.
      near: int64 [m, r], the items to rank for each query; -1 where there are fewer.
      queries: uint64 [m, t] or [m, t, w], the codes of each query.
      margins: float32 [m, t, q], finite and at least 0.
      item: int64 [m, k], filled; -1 where fewer exist.
      distance: float32 [m, k], filled; -1 likewise.
    """
    num_codes, num_bits = margins.shape[1], margins.shape[2]
    steps = np.empty((num_codes, num_bits), np.int64)
    tables = np.empty((num_codes, (num_bits + 7) // 8, 256), np.int64)
    costs = np.empty(near.shape[1], np.int64)
    for m in range(queries.shape[0]):
        unit = fill_steps(margins[m], steps)
        for t in range(num_codes):
            fill_tables(steps[t], tables[t])
        ranked = np.sort(near[m][near[m] >= 0])
        for i in range(ranked.size):
            costs[i] = _least_cost(words, items, np.uint32(ranked[i]), queries[m], tables)
        order = np.argsort(costs[: ranked.size], kind="mergesort")
        item[m], distance[m] = -1, -1
        for i in range(min(item.shape[1], ranked.size)):
            item[m, i], distance[m, i] = ranked[order[i]], costs[order[i]] * unit
