"""Probing by quantization distance equals sorting all 2^q buckets.

PROBE_CASES=240 compares five times as many indexes.
"""

import heapq
import os
import re
import tempfile
from fractions import Fraction

import numpy as np
import pytest
from index_cases import build, changed, pack, random_margins, random_pairs

from mch_jax.index import BucketIndex

# Indexes per number of codes per query, each with several queries, budgets and numbers of items.
CASES = int(os.environ.get("PROBE_CASES", "48"))


def sorted_buckets(codes, margins, num_bits):
    """Returns all 2^q buckets in the order of probing, and their costs, by sorting them.

    Margins are multiples of 1/8, so that sums in float64 are exact.
    """
    buckets = np.arange(1 << num_bits, dtype=np.uint64)
    costs, masks = [], []
    for code, margin in zip(codes, margins, strict=True):
        flips = buckets ^ code
        bits = (flips[:, None] >> np.arange(num_bits, dtype=np.uint64)) & np.uint64(1)
        costs.append(bits.astype(np.float64) @ margin.astype(np.float64))
        masks.append(flips)
    costs, masks = np.array(costs), np.array(masks)
    first = np.lexsort((masks, costs), axis=0)[0]
    column = np.arange(len(buckets))
    cost, mask = costs[first, column], masks[first, column]
    order = np.lexsort((first, mask, cost))
    return buckets[order], cost[order]


def by_sorting(pairs, ranked, budget, k):
    """Returns what probing should: items, costs, and the three counts."""
    buckets = {}
    for code, item in pairs:
        buckets.setdefault(code, set()).add(item)
    found, costs, probed, nonempty, candidates = [], [], 0, 0, 0
    seen = set()
    for code, cost in zip(*ranked, strict=True):
        if probed == budget or (k is not None and len(found) == k):
            break
        probed += 1
        bucket = sorted(buckets.get(int(code), ()))
        nonempty += bool(bucket)
        for item in bucket:
            candidates += 1
            if item not in seen:
                seen.add(item)
                found.append(item)
                costs.append(cost)
                if len(found) == k:
                    break
    return found, costs, probed, nonempty, candidates


@pytest.mark.parametrize("num_codes", [0, 1, 3, 6])
def test_probe_equals_sorting_all_buckets(num_codes, record_property):
    rng, compared = np.random.default_rng(num_codes), 0
    for case in range(CASES):
        num_bits = 1 + case % 16 if case % 8 else 16
        pairs = random_pairs(rng, num_bits, int(rng.integers(0, 200)))
        index = build(pairs, num_bits)
        with tempfile.TemporaryDirectory() as directory:
            index, pairs = changed(index, pairs, rng, directory)
        shape = (2, max(1, num_codes))
        queries = rng.integers(0, 1 << num_bits, shape).astype(np.uint64)
        if pairs and case % 2:
            queries[0] ^= queries[0] ^ np.uint64(pairs[0][0])  # equal codes
        margins = random_margins(rng, (*shape, num_bits))
        ranked = [sorted_buckets(*both, num_bits) for both in zip(queries, margins, strict=True)]
        ask = (pack(queries, num_bits), margins)
        if num_codes == 0:
            ask = (ask[0][:, 0], margins[:, 0])
        for budget in (1, int(rng.integers(1, 200)), int(rng.integers(1, 3000)), 1 << 20):
            for k in (None, 1, int(rng.integers(1, 60)), 10**12):
                found = index.probe(*ask, budget, k)
                for m in range(2):
                    item, cost, *counts = by_sorting(pairs, ranked[m], budget, k)
                    part = slice(found.offsets[m], found.offsets[m + 1])
                    assert found.item[part].tolist() == item
                    assert found.cost[part].tolist() == cost
                    assert [found.probed[m], found.nonempty[m], found.candidates[m]] == counts
                    compared += 1
    record_property("compared", compared)
    assert compared == CASES * 4 * 4 * 2


def by_heap(code, margin, num_bits, budget):
    """Returns the nearest buckets of a query of any length and their exact costs, by a heap."""
    steps = [Fraction(float(value)) for value in margin]
    bits = sorted(range(num_bits), key=lambda bit: (steps[bit], bit))
    heap, ranked = [(Fraction(0), 0, -1)], []
    while heap and len(ranked) < budget:
        cost, mask, last = heapq.heappop(heap)
        ranked.append((code ^ mask, cost))
        if last + 1 < num_bits:
            new = bits[last + 1]
            heapq.heappush(heap, (cost + steps[new], mask | 1 << new, last + 1))
            if last >= 0:
                old = bits[last]
                swapped = (cost + steps[new] - steps[old], mask ^ 1 << old | 1 << new, last + 1)
                heapq.heappush(heap, swapped)
    return zip(*ranked, strict=True)


@pytest.mark.parametrize("num_bits", [17, 32, 47, 63, 64])
def test_long_codes_with_any_margins_equal_a_heap(num_bits):
    rng = np.random.default_rng(num_bits)
    top = np.uint64((1 << num_bits) - 1)
    for kind in range(4):
        query = rng.integers(0, 2**64, 3, np.uint64) & top
        margins = np.abs(rng.standard_normal((3, num_bits))).astype(np.float32)
        if kind:
            margins = (margins ** [1, 4, 1, 1][kind] * [1, 1, 1e-38, 1e37][kind]).astype(np.float32)
            margins = np.maximum(margins, margins.max(1, keepdims=True) * np.float32(2**-31))
        budget = 700
        ranked = [
            list(by_heap(int(c), m, num_bits, budget)) for c, m in zip(query, margins, strict=True)
        ]
        near = np.array([codes for codes, _ in ranked], np.uint64)[:, ::3].reshape(-1)
        item = rng.integers(0, 300, len(near))
        index = BucketIndex.build(pack(near, num_bits), item, num_bits)
        pairs = list(zip(near.tolist(), item.tolist(), strict=True))
        for k in (None, 20, 150):
            found = index.probe(pack(query, num_bits), margins, budget, k)
            for m in range(3):
                item_m, cost, *counts = by_sorting(pairs, ranked[m], budget, k)
                part = slice(found.offsets[m], found.offsets[m + 1])
                assert found.item[part].tolist() == item_m
                np.testing.assert_array_equal(found.cost[part], np.array(cost, np.float32))
                assert [found.probed[m], found.nonempty[m], found.candidates[m]] == counts


def test_many_queries_find_what_each_finds_alone():
    """Their items do not fit into the arrays of the first queries, which have to grow."""
    rng = np.random.default_rng(1)
    codes, item = rng.integers(0, 8, (20_000, 1), np.uint8), rng.integers(0, 9000, 20_000)
    index = BucketIndex.build(codes, item, 8)
    queries, margins = codes[:40], rng.random((40, 8), np.float32)
    budgets = rng.integers(1, 60, 3).tolist()
    for budget in budgets:
        found = index.probe(queries, margins, budget, threads=1)
        assert len(found.item) > 16 * 4096
        for m in range(40):
            alone = index.probe(queries[m : m + 1], margins[m : m + 1], budget)
            part = slice(found.offsets[m], found.offsets[m + 1])
            np.testing.assert_array_equal(found.item[part], alone.item)
            np.testing.assert_array_equal(found.cost[part], alone.cost)
            counts = found.probed[m], found.nonempty[m], found.candidates[m]
            assert counts == (alone.probed[0], alone.nonempty[0], alone.candidates[0])


def test_threads_and_many_queries_give_the_same_answer():
    rng = np.random.default_rng(0)
    codes, item = rng.integers(0, 256, (5000, 2), np.uint8), rng.integers(0, 3000, 5000)
    index = BucketIndex.build(codes, item, 16)
    queries, margins = codes[:300], rng.random((300, 16), np.float32)
    one, two = (index.probe(queries, margins, 50, 30, threads=count) for count in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    none = index.probe(queries[:0], margins[:0], 50)
    assert [len(array) for array in none] == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "budget is 0, expected an integer of at least 1"),
        ({"budget": 2.5}, "budget is 2.5, expected an integer"),
        ({"budget": 2**40}, "budget is 1099511627776 for 1 codes per query, expected at most"),
        ({"k": 0}, "k is 0, expected an integer of at least 1"),
        ({"margins": np.full((2, 47), np.nan, np.float32)}, "a margin is nan, expected finite"),
        ({"margins": np.full((2, 47), np.inf, np.float32)}, "a margin is inf, expected finite"),
        ({"margins": np.full((2, 47), -1, np.float32)}, "a margin is -1.0, expected finite"),
        ({"margins": np.ones((2, 47))}, "margins are float64 [2, 47], expected float32 [2, 47]"),
        ({"margins": np.ones((2, 40), np.float32)}, "expected float32 [2, 47]"),
        ({"margins": np.ones((2, 1, 47), np.float32)}, "expected float32 [2, 47]"),
        ({"query_codes": np.zeros((2, 5), np.uint8)}, "expected uint8 [n, 6] for 47 bits"),
        ({"query_codes": np.zeros((2, 0, 6), np.uint8)}, "expected at least one per query"),
        ({"query_codes": np.full((2, 6), 255, np.uint8)}, "padding must be 0"),
    ],
)
def test_bad_input_is_one_line(change, message):
    index = BucketIndex.build(np.zeros((1, 6), np.uint8), np.zeros(1, np.int64), 47)
    arguments = {
        "query_codes": np.zeros((2, 6), np.uint8), "margins": np.ones((2, 47), np.float32),
        "budget": 10,
    }  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        index.probe(**(arguments | change))
    assert "\n" not in str(error.value)
