"""Connected components against a plain search."""

import numpy as np
import pytest

from mch_jax import components


def naive(pairs, count):
    """Components by joining sets until nothing changes."""
    parts = [{item} for item in range(count)]
    for a, b in pairs:
        joined = {x for part in parts if a in part or b in part for x in part}
        parts = [part for part in parts if not part & joined] + [joined]
    return sorted(sorted(part) for part in parts if len(part) > 1)


@pytest.mark.parametrize("seed", range(20))
def test_components_are_those_of_a_plain_search(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 40))
    pairs = rng.integers(0, count, (int(rng.integers(0, count)), 2))
    found = [part.tolist() for part in components.connected(pairs, count)]
    assert found == naive(pairs.tolist(), count)


def test_a_chain_is_one_group_and_a_single_item_is_none():
    pairs = np.array([[4, 2], [2, 0], [3, 3], [2, 4]])
    assert [part.tolist() for part in components.connected(pairs, 6)] == [[0, 2, 4]]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_no_pairs_are_no_groups(count):
    assert components.connected(np.zeros((0, 2), np.int64), count) == []
