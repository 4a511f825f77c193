"""The buckets that probing looks at, one by one, equal those of `probe` and of Algorithm 1."""

import re
import tempfile

import numpy as np
import pytest
from index_cases import build, changed, pack, random_margins, random_pairs

from mch_jax.index import probed_buckets


@pytest.mark.parametrize("num_codes", [1, 3, 6])
def test_the_buckets_hold_what_probe_finds(num_codes):
    rng = np.random.default_rng(num_codes)
    for num_bits in (1, 5, 8, 11, 16, 33, 63):
        pairs = random_pairs(rng, num_bits, 150)
        index = build(pairs, num_bits)
        with tempfile.TemporaryDirectory() as directory:
            index, pairs = changed(index, pairs, rng, directory)
        near = [code for code, _ in pairs[:num_codes]]
        query = pack(np.resize(near, num_codes) ^ rng.integers(0, 2, num_codes), num_bits)
        margins = random_margins(rng, (num_codes, num_bits))
        for budget in (1, 7, 90, 4096):
            traced = probed_buckets(index, query, margins, budget)
            found = index.probe(query[None], margins[None], budget)
            item, first = np.unique(traced.item, return_index=True)
            bucket = np.repeat(np.arange(len(traced.code)), np.diff(traced.offsets))
            order = np.argsort(first)
            np.testing.assert_array_equal(item[order], found.item)
            np.testing.assert_array_equal(traced.cost[bucket[first[order]]], found.cost)
            counts = len(traced.code), (np.diff(traced.offsets) > 0).sum(), len(traced.item)
            assert counts == (found.probed[0], found.nonempty[0], found.candidates[0])
            differing = traced.code ^ query[traced.query_code]
            bits = np.unpackbits(differing, axis=1, bitorder="little")[:, :num_bits]
            np.testing.assert_array_equal((bits * margins[traced.query_code]).sum(1), traced.cost)
            assert len(np.unique(traced.code, axis=0)) == len(traced.code)


def test_equal_margins_give_the_order_of_algorithm_1():
    index = build([(0b101, 0)], 3)
    traced = probed_buckets(index, pack([0b100], 3), np.ones((1, 3), np.float32), 8)
    assert (traced.code[:, 0] ^ 0b100).tolist() == [0, 1, 2, 4, 3, 5, 6, 7]
    assert traced.cost.tolist() == [0, 1, 1, 1, 2, 2, 2, 3]
    assert traced.offsets.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1]


def test_wrong_arguments_are_refused():
    index, query, margins = build([(1, 0)], 3), pack([1], 3), np.ones((1, 3), np.float32)
    for arguments, reason in (
        ((query, margins, 0), "budget is 0, expected 1 to 4096"),
        ((query[:0], margins[:0], 1), "no query code"),
        ((query, margins[:, :2], 1), "margins are float32 [1, 1, 2]"),
        ((query, -margins, 1), "a margin is -1.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(reason)):
            probed_buckets(index, *arguments)
