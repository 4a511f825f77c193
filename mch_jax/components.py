"""Groups of items that are connected by pairs."""

import numpy as np
from jaxtyping import Int64


def connected(pairs: Int64[np.ndarray, "k 2"], count: int) -> list[Int64[np.ndarray, " m"]]:
    """Returns the connected components with two or more items.

    Args:
      pairs: Pairs of items from 0 to `count` - 1.
      count: Number of items.

    Returns:
      The items of each component in ascending order; components in the order of their first items.
    """
    from scipy.sparse import coo_array, csgraph  # takes a quarter of a second

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (count, count))
    _, label = csgraph.connected_components(graph, directed=False)
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    found = [part for part in np.split(order, starts[1:]) if len(part) > 1]
    return sorted(found, key=lambda part: int(part[0]))
