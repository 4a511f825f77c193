"""Search by asymmetric distance, and among allowed items, equals computing every distance."""

import os
import re
import tempfile

import numpy as np
import pytest
from index_cases import build, changed, pack, random_margins, random_pairs

from mch_jax.index import BucketIndex, segment

CASES = int(os.environ.get("PROBE_CASES", "45"))


def exhaustive(pairs, codes, margins, k):
    """Returns the items and distances that a search should, by a plain loop."""
    nearest = {}
    for code, item in pairs:
        for query, margin in zip(codes, margins, strict=True):
            flips = int(query) ^ code
            bits = [bit for bit in range(len(margin)) if flips >> bit & 1]
            cost = float(margin[bits].sum(dtype=np.float64))
            nearest[item] = min(cost, nearest.get(item, cost))
    ranked = sorted((cost, item) for item, cost in nearest.items())[:k]
    ranked += [(-1, -1)] * (k - len(ranked))
    return [item for _, item in ranked], [cost for cost, _ in ranked]


@pytest.mark.parametrize("num_codes", [0, 1, 4])
def test_search_by_asymmetric_distance_equals_every_distance(num_codes, monkeypatch):
    monkeypatch.setattr(segment, "CODES_PER_PIVOT", 2)
    rng = np.random.default_rng(num_codes)
    for case in range(CASES):
        num_bits = [1, 3, 8, 13, 16, 24, 32, 47, 63][case % 9]
        pairs = random_pairs(rng, num_bits, int(rng.integers(0, 200)))
        index = build(pairs, num_bits)
        with tempfile.TemporaryDirectory() as directory:
            index, pairs = changed(index, pairs, rng, directory)
        shape = (2, max(1, num_codes))
        queries = rng.integers(0, 1 << num_bits, shape).astype(np.uint64)
        if pairs and case % 2:
            queries[0] ^= queries[0] ^ np.uint64(pairs[0][0])
        margins = random_margins(rng, (*shape, num_bits))
        ask = (pack(queries, num_bits), margins)
        if num_codes == 0:
            ask = (ask[0][:, 0], margins[:, 0])
        kinds = [None, np.sort(rng.choice(95, 40, replace=False)), rng.random(60) < 0.9]
        kinds.append(np.sort(rng.choice(95, 3, replace=False)))
        for allowed in kinds:
            left = pairs
            if allowed is not None:
                items = np.flatnonzero(allowed) if allowed.dtype == bool else allowed
                left = [pair for pair in pairs if pair[1] in items]
            for k in (1, 7, 200):
                hits = index.search(ask[0], k, margins=ask[1], allowed=allowed)
                for m in range(2):
                    item, distance = exhaustive(left, queries[m], margins[m], k)
                    assert hits.item[m].tolist() == item
                    assert hits.distance[m].tolist() == distance


@pytest.mark.parametrize("num_codes", [1, 3])
def test_reranking_equals_every_distance_of_the_nearest_items(num_codes):
    rng = np.random.default_rng(num_codes)
    for case in range(CASES):
        num_bits = [1, 8, 13, 32, 47, 63][case % 6]
        pairs = random_pairs(rng, num_bits, int(rng.integers(0, 150)))
        index = build(pairs, num_bits)
        with tempfile.TemporaryDirectory() as directory:
            index, pairs = changed(index, pairs, rng, directory)
        queries = rng.integers(0, 1 << num_bits, (2, num_codes)).astype(np.uint64)
        margins = random_margins(rng, (2, num_codes, num_bits))
        unit = np.ones_like(margins)
        for k, rerank in ((1, 1), (3, 8), (7, 200)):
            for allowed in (None, np.arange(5, 60)):
                hits = index.search(
                    pack(queries, num_bits), k, margins=margins, allowed=allowed, rerank=rerank
                )
                assert hits.rerank == rerank
                for m in range(2):
                    left = [p for p in pairs if allowed is None or p[1] in allowed]
                    near = set(exhaustive(left, queries[m], unit[m], rerank)[0])
                    left = [pair for pair in left if pair[1] in near]
                    item, distance = exhaustive(left, queries[m], margins[m], k)
                    assert hits.item[m].tolist() == item
                    assert hits.distance[m].tolist() == distance


@pytest.mark.parametrize("num_bits", [8, 16, 40])
def test_search_among_allowed_items_equals_an_index_of_these(num_bits):
    rng = np.random.default_rng(num_bits)
    for _ in range(CASES // 2):
        pairs = random_pairs(rng, num_bits, int(rng.integers(0, 200)))
        index = build(pairs, num_bits)
        with tempfile.TemporaryDirectory() as directory:
            index, pairs = changed(index, pairs, rng, directory)
        queries = pack(rng.integers(0, 1 << num_bits, 4), num_bits)
        for share in (0.0, 0.05, 0.5, 1.0):
            mask = rng.random(90) < share
            own = build([pair for pair in pairs if mask[pair[1]]], num_bits)
            for k in (1, 5, 120):
                expected = own.search(queries, k)
                for allowed in (mask, np.flatnonzero(mask)):
                    hits = index.search(queries, k, allowed=allowed)
                    assert all(np.array_equal(a, b) for a, b in zip(hits, expected, strict=True))


def test_many_queries_in_threads_give_the_same_answer():
    rng = np.random.default_rng(0)
    codes, item = rng.integers(0, 256, (4000, 4), np.uint8), rng.integers(0, 3000, 4000)
    index = BucketIndex.build(codes, item, 32)
    margins = rng.random((200, 32), np.float32)
    one, two = (index.search(codes[:200], 9, threads, margins=margins) for threads in (1, 2))
    assert np.array_equal(one.item, two.item)
    assert np.array_equal(one.distance, two.distance)
    unit = index.search(codes[:200], 9, margins=np.ones((200, 32), np.float32))
    hits = index.search(codes[:200], 9)
    assert np.array_equal(unit.item, hits.item)
    assert np.array_equal(unit.distance, hits.distance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0, expected at least 1"),
        ({"rerank": 9}, "rerank is 9, expected at least k=3, together with margins"),
        ({"rerank": 2, "margins": np.ones((2, 47), np.float32)}, "rerank is 2, expected at least"),
        ({"margins": np.full((2, 47), np.nan, np.float32)}, "a margin is nan, expected finite"),
        ({"margins": np.full((2, 47), -1, np.float32)}, "a margin is -1.0, expected finite"),
        ({"margins": np.ones((2, 46), np.float32)}, "expected float32 [2, 47]"),
        ({"allowed": np.array([2, 1])}, "allowed is not ascending"),
        ({"allowed": np.array([1, 1])}, "allowed is not ascending"),
        ({"allowed": np.array([1.5])}, "allowed is float64 [1], expected ascending integers"),
        ({"allowed": np.ones((2, 2), bool)}, "allowed is bool [2, 2], expected"),
        ({"allowed": np.array([-1, 4])}, "items range from -1 to 4"),
    ],
)
def test_bad_input_is_one_line(change, message):
    index = BucketIndex.build(np.zeros((1, 6), np.uint8), np.zeros(1, np.int64), 47)
    arguments = {"query_codes": np.zeros((2, 6), np.uint8), "k": 3}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        index.search(**(arguments | change))
    assert "\n" not in str(error.value)
