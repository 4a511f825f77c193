"""Groups of items that stand for given pairs: two items are similar if they share a group.

Labels, and everything that is computed from them, need a property of one image. Pairs are brought
into this form by covering the graph of similar pairs with cliques, sets of items that are all
similar to each other. Each clique is a group. An item has the groups of all cliques that it is in,
and two items share one if and only if they are a pair.
"""

import numpy as np
from jaxtyping import Bool, Int, UInt8


def cover(pairs: Int[np.ndarray, "k 2"], count: int) -> UInt8[np.ndarray, "{count} g"]:
    """Returns groups of items, multi-hot, so that two items share one exactly if they are a pair.

    The cover is greedy and depends on nothing but its arguments. A clique starts at the item with
    the largest number of pairs that no clique covers yet. It grows by the item that covers most of
    them, as long as there is one. If similarity is transitive, as for photos of the same product,
    the groups are the classes. The smallest number of groups is hard to find, and not sought.

    Args:
      pairs: Pairs of different items from 0 to `count` - 1, in any order.
      count: Number of items. Items without a pair have no group.
    """
    items = np.unique(pairs)
    own = np.searchsorted(items, pairs)
    adjacent = np.zeros((len(items), len(items)), bool)
    adjacent[own[:, 0], own[:, 1]] = adjacent[own[:, 1], own[:, 0]] = True
    groups = _cliques(adjacent)
    found = np.zeros((count, len(groups)), np.uint8)
    for number, members in enumerate(groups):
        found[items[members], number] = 1
    return found


def _cliques(adjacent: Bool[np.ndarray, "n n"]) -> list[list[int]]:
    """Returns cliques that cover all edges of a graph without loops."""
    uncovered = adjacent.copy()
    degree = uncovered.sum(1)
    found = []
    while degree.any():
        members = [int(degree.argmax())]
        gain = uncovered[members[0]].astype(np.int32)  # uncovered edges to the members so far
        candidates = adjacent[members[0]].copy()
        while True:
            best = int(np.where(candidates, gain, 0).argmax())
            if not candidates[best] or not gain[best]:
                break
            members.append(best)
            gain += uncovered[best]
            candidates &= adjacent[best]
        block = np.ix_(members, members)
        degree[members] -= uncovered[block].sum(1)
        uncovered[block] = False
        found.append(members)
    return found
