"""Indexes of codes of 65 to 1,024 bits equal plain loops over Python integers.

LONG_CASES=40 compares ten times as many indexes of each length.
"""

import os
import tempfile
from math import comb

import numpy as np
import pytest
from index_cases import random_margins
from index_probe_test import by_heap, by_sorting
from index_test import exhaustive, pack

from mch_jax.cluster.merge import merge_nearest, merge_within
from mch_jax.cluster.replica import NearestInShard, WithinShard
from mch_jax.files import codes_file
from mch_jax.files.codes_file import CodeFile
from mch_jax.index import BucketIndex, count_visits, long_codes, probed_buckets, segment
from mch_jax.kernels import build_long

LENGTHS = [65, 100, 128, 200, 256, 513, 1024]
CASES = int(os.environ.get("LONG_CASES", "4"))
NUM_ITEMS = 60


@pytest.fixture(autouse=True)
def _many_pivots(monkeypatch):
    monkeypatch.setattr(segment, "CODES_PER_PIVOT", 2)
    monkeypatch.setattr(long_codes, "PIVOT_SUPPORT", 1)


def random_code(rng, num_bits):
    return int.from_bytes(rng.bytes(num_bits // 8 + 1), "little") >> 8 - num_bits % 8


def flipped(rng, code, num_bits, most):
    """Returns the code with up to `most` bits flipped."""
    for bit in rng.integers(0, num_bits, rng.integers(0, most + 1)).tolist():
        code ^= 1 << bit
    return code


def random_pairs(rng, num_bits, centres, size):
    """Returns codes around centres, some far from all, with items that have several codes."""
    pairs = []
    for item in rng.integers(0, NUM_ITEMS, size).tolist():
        code = flipped(rng, centres[rng.integers(len(centres))], num_bits, 3)
        pairs.append((code if rng.random() < 0.8 else random_code(rng, num_bits), item))
    return pairs


def arrays(pairs, num_bits):
    return pack([code for code, _ in pairs], num_bits), np.array([i for _, i in pairs], np.int64)


def changed(index, pairs, rng, centres, directory):
    """Changes an index and its pairs in a random way; returns both."""
    num_bits = index.num_bits
    for step in rng.permutation(6)[: rng.integers(0, 7)]:
        if step == 0:
            more = random_pairs(rng, num_bits, centres, 15)
            index.add(*arrays(more, num_bits))
            pairs = pairs + more
        elif step == 1:
            gone = rng.integers(0, NUM_ITEMS, 9)
            index.remove(gone)
            pairs = [pair for pair in pairs if pair[1] not in gone]
        elif step == 2 and pairs:
            again = [pairs[i] for i in rng.integers(0, len(pairs), 4)]
            again += [(again[0][0], NUM_ITEMS - 1)]  # a code of the base, with another item
            index.add(*arrays(again, num_bits))
            pairs = pairs + again
        elif step == 3:
            index.save(directory)
            index = BucketIndex.open(directory)
        elif step == 4:
            index.merge()
    return index, pairs


def cases(num_bits, seed=0):
    """Yields an index that was changed, its pairs, three queries, and a random generator."""
    rng = np.random.default_rng([num_bits, seed])
    for case in range(CASES):
        centres = [random_code(rng, num_bits) for _ in range(3)]
        pairs = random_pairs(rng, num_bits, centres, int(rng.integers(0, 150)) if case else 120)
        index = BucketIndex.build(*arrays(pairs, num_bits), num_bits)
        with tempfile.TemporaryDirectory() as directory:
            index, pairs = changed(index, pairs, rng, centres, directory)
            near = pairs[0][0] if pairs else 0
            queries = [near, flipped(rng, centres[0], num_bits, 3), random_code(rng, num_bits)]
            yield index, pairs, queries, rng


def num_smaller(mask):
    """Returns how many masks have as many bits set and are smaller, from the highest bit down."""
    total, ones = 0, mask.bit_count()
    for bit in range(mask.bit_length() - 1, -1, -1):
        if mask >> bit & 1:
            total += comb(bit, ones)  # those without this bit
            ones -= 1
    return total


def algorithm_1(pairs, query, k, num_bits):
    """Returns the counts, and the non-empty buckets up to the k-th item with their new items."""
    buckets, met, visited = {}, set(), []
    for code, item in pairs:
        buckets.setdefault(code ^ query, set()).add(item)
    for mask in sorted(buckets, key=lambda mask: (mask.bit_count(), mask)):
        new = len(buckets[mask] - met)
        visited.append((mask, min(new, k - len(met))))
        met |= buckets[mask]
        if len(met) >= k:
            distance = mask.bit_count()
            nearer = sum(comb(num_bits, i) for i in range(distance))
            return nearer + num_smaller(mask) + 1, visited
    return 2**num_bits, visited


def as_ints(words):
    return [int.from_bytes(row.astype("<u8").tobytes(), "little") for row in words]


def check_search(index, pairs, queries, k, allowed=None):
    hits = index.search(pack(queries, index.num_bits), k, allowed=allowed)
    left = pairs
    if allowed is not None:
        items = np.flatnonzero(allowed) if allowed.dtype == bool else allowed
        left = [pair for pair in pairs if pair[1] in items]
    for m, query in enumerate(queries):
        expected = (exhaustive(left, query) + [(-1, -1)] * k)[:k]
        found = zip(hits.distance[m].tolist(), hits.item[m].tolist(), strict=True)
        assert list(found) == expected
        probed, visited = algorithm_1(left, query, k, index.num_bits)
        assert (hits.probed[m], hits.nonempty[m]) == (probed, len(visited))
    fits = all(count < 2**63 for count in hits.probed)
    assert hits.probed.dtype == (np.int64 if fits else object)


@pytest.mark.parametrize("num_bits", LENGTHS)
def test_search_and_its_counts_equal_plain_loops(num_bits, monkeypatch):
    for index, pairs, queries, rng in cases(num_bits):
        assert len(index) == len({item for _, item in pairs})
        for k, together in ((1, True), (2, False), (7, True), (70, False)):
            monkeypatch.setattr(segment, "MIN_BYTES_TOGETHER", 0 if together else 2**22)
            check_search(index, pairs, queries, k)
        for allowed in (rng.random(NUM_ITEMS) < 0.6, np.array([3, 8, 20]), np.zeros(0, np.int64)):
            check_search(index, pairs, queries, 5, allowed)


@pytest.mark.parametrize("num_bits", LENGTHS)
def test_within_and_visits_equal_plain_loops(num_bits):
    for index, pairs, queries, _ in cases(num_bits, 1):
        codes = pack(queries, num_bits)
        for radius in (0, 1, 2, 5, num_bits // 2, 10**6):
            ball = index.within(codes, radius)
            for m, query in enumerate(queries):
                part = slice(ball.offsets[m], ball.offsets[m + 1])
                found = zip(ball.distance[part].tolist(), ball.item[part].tolist(), strict=True)
                assert list(found) == [x for x in exhaustive(pairs, query) if x[0] <= radius]
                near = {code for code, _ in pairs if (code ^ query).bit_count() <= radius}
                assert ball.nonempty[m] == len(near)
        for k in (1, 5, None):
            visits = index.visits(codes, k)
            for m, query in enumerate(queries):
                part = slice(visits.offsets[m], visits.offsets[m + 1])
                masks, new_items = visits.mask[part], visits.new_items[part]
                probed, visited = algorithm_1(pairs, query, k or 10**9, num_bits)
                assert list(zip(as_ints(masks), new_items.tolist(), strict=True)) == visited
                counts = count_visits(masks[::-1], new_items[::-1], k or 10**9, num_bits)
                assert counts == (probed, len(visited))


def costs(pairs, codes, margins, k):
    """Returns the items and distances of a ranking by asymmetric distance."""
    nearest = {}
    for code, item in pairs:
        for query, margin in zip(codes, margins, strict=True):
            bits = [bit for bit, digit in enumerate(bin(query ^ code)[:1:-1]) if digit == "1"]
            cost = float(margin[bits].sum(dtype=np.float64))
            nearest[item] = min(cost, nearest.get(item, cost))
    ranked = sorted((cost, item) for item, cost in nearest.items())[:k]
    ranked += [(-1, -1)] * (k - len(ranked))
    return [item for _, item in ranked], [cost for cost, _ in ranked]


@pytest.mark.parametrize("num_bits", LENGTHS)
def test_asymmetric_distance_equals_plain_loops(num_bits):
    for index, pairs, queries, rng in cases(num_bits, 2):
        for groups in ([[query] for query in queries], [queries, queries[::-1]]):
            margins = random_margins(rng, (len(groups), len(groups[0]), num_bits))
            shape = (*margins.shape[:2], -1)
            codes = np.concatenate([pack(own, num_bits) for own in groups]).reshape(shape)
            allowed = rng.random(NUM_ITEMS) < 0.5
            for k, only in ((1, None), (9, None), (70, None), (4, allowed)):
                left = [x for x in pairs if only is None or only[x[1]]]
                hits = index.search(codes, k, margins=margins, allowed=only)
                again = index.search(codes, k, margins=margins, allowed=only, rerank=99)
                for m, own in enumerate(groups):
                    expected = costs(left, own, margins[m], k)
                    assert (hits.item[m].tolist(), hits.distance[m].tolist()) == expected
                    assert (again.item[m].tolist(), again.distance[m].tolist()) == expected
            few = index.search(codes, 2, margins=margins, rerank=6)
            for m, own in enumerate(groups):
                near = costs(pairs, own, np.ones_like(margins[m]), 6)[0]
                expected = costs([x for x in pairs if x[1] in near], own, margins[m], 2)
                assert (few.item[m].tolist(), few.distance[m].tolist()) == expected


def merged(lists):
    """Returns the buckets of several codes in the order of probing, each once."""
    entries = []
    for t, (code, buckets) in enumerate(lists):
        entries += [(cost, bucket ^ code, t, bucket) for bucket, cost in buckets]
    seen, ranked = set(), []
    for cost, _, t, bucket in sorted(entries):
        if bucket not in seen:
            seen.add(bucket)
            ranked.append((bucket, float(cost), t))
    return ranked


@pytest.mark.parametrize("num_bits", LENGTHS)
def test_probe_and_its_buckets_equal_a_heap(num_bits):
    most = 400
    for index, pairs, queries, rng in cases(num_bits, 3):
        for own in ([queries[0]], [queries[1]], [queries[0], flipped(rng, queries[0], 65, 2)]):
            margins = random_margins(rng, (1, len(own), num_bits))
            ranked = merged(
                (code, list(zip(*by_heap(code, margin, num_bits, most), strict=True)))
                for code, margin in zip(own, margins[0], strict=True)
            )[:most]
            buckets = [bucket for bucket, _, _ in ranked], [cost for _, cost, _ in ranked]
            codes = pack(own, num_bits)
            for budget in (1, 70, most):
                traced = probed_buckets(index, codes, margins[0], budget)
                found_codes = [int.from_bytes(row.tobytes(), "little") for row in traced.code]
                assert found_codes == buckets[0][:budget]
                assert traced.cost.tolist() == buckets[1][:budget]
                assert traced.query_code.tolist() == [t for _, _, t in ranked[:budget]]
                for k in (None, 1, 6):
                    found = index.probe(codes[None], margins, budget, k)
                    item, cost, *counts = by_sorting(pairs, buckets, budget, k)
                    assert found.item.tolist() == item
                    assert found.cost.tolist() == cost
                    assert [found.probed[0], found.nonempty[0], found.candidates[0]] == counts


def test_probing_many_buckets_grows_the_heap():
    """All margins are equal, so that the order is by distance and mask, past pairs of bits."""
    rng, num_bits = np.random.default_rng(0), 70
    query = random_code(rng, num_bits)
    pairs = [(query ^ (1 << 69), 5), (query ^ (3 << 68), 6), (query ^ (7 << 67), 7), (query, 8)]
    index = BucketIndex.build(*arrays(pairs, num_bits), num_bits)
    codes = pack([query, query ^ 1], num_bits)
    for own in (codes[:1], codes):
        margins = np.ones((1, len(own), num_bits), np.float32)
        budget = sum(comb(num_bits, i) for i in range(4))
        found = index.probe(own[None], margins, budget if len(own) == 1 else 2 * budget)
        assert found.item.tolist() == [8, 5, 6, 7]
        assert found.cost.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="budget is 67108864 for 2 codes per query, expected at"):
        index.probe(codes[None], np.ones((1, 2, num_bits), np.float32), 2**26)


def test_answers_of_shards_merge_into_those_of_one_index():
    rng, num_bits = np.random.default_rng(0), 140
    centres = [random_code(rng, num_bits) for _ in range(2)]
    pairs = random_pairs(rng, num_bits, centres, 80)
    parts = [[pair for pair in pairs if pair[1] % 2 == shard] for shard in range(2)]
    whole, *shards = (
        BucketIndex.build(*arrays(own, num_bits), num_bits) for own in (pairs, *parts)
    )
    queries = pack([pairs[0][0], centres[0], random_code(rng, num_bits)], num_bits)
    for k in (1, 6, 70):
        near = []
        for shard in shards:
            hits = shard.search(queries, k)
            radius = np.where(hits.item[:, -1] < 0, num_bits, hits.distance[:, -1])
            visits = shard.visits(queries, k, radius)
            near.append(NearestInShard(hits.item, hits.distance, *visits))
        merged_hits = merge_nearest(near, num_bits)
        for one, two in zip(merged_hits, whole.search(queries, k), strict=True):
            assert one.tolist() == two.tolist()
    found = []
    for shard in shards:
        ball, visits = shard.within(queries, 6), shard.visits(queries, None, np.full(3, 6))
        found.append(
            WithinShard(ball.offsets, ball.item, ball.distance, visits.offsets, visits.mask)
        )
    for one, two in zip(merge_within(found), whole.within(queries, 6), strict=True):
        assert one.tolist() == two.tolist()


def test_counts_of_short_masks_equal_enumeration():
    for num_bits in (1, 5, 9):
        order = sorted(range(2**num_bits), key=lambda mask: (mask.bit_count(), mask))
        assert [long_codes.num_visited(mask, num_bits) for mask in order] == list(
            range(1, 2**num_bits + 1)
        )
    assert long_codes.num_visited(2**1024 - 1, 1024) == 2**1024


@pytest.mark.parametrize("num_bits", [128, 256, 520])
def test_clusters_of_many_codes(num_bits, monkeypatch):
    """The set is large enough for pruned rings, a reach that falls, ties, threads and maps."""
    monkeypatch.setattr(segment, "CODES_PER_PIVOT", 64)
    rng = np.random.default_rng(num_bits)
    centres = rng.integers(0, 256, (25, num_bits // 8), np.uint8)

    def near(count):
        flips = np.packbits(rng.random((count, num_bits)) < 0.03, axis=1)
        codes = centres[rng.integers(0, 25, count)] ^ flips
        noise = rng.integers(0, 256, codes.shape, np.uint8)
        return np.where(rng.random((count, 1)) < 0.9, codes, noise)

    codes, queries = near(12_000), near(150)
    item = np.sort(rng.integers(0, 8000, 12_000))
    index = BucketIndex.build(codes, item, num_bits)
    for later in (False, True):
        if later:
            index.remove(item[::7])
            index.add(codes[:999], item[:999])
            keep = ~np.isin(item, item[::7])
            codes = np.concatenate([codes[keep], codes[:999]])
            item = np.concatenate([item[keep], item[:999]])
            with tempfile.TemporaryDirectory() as directory:
                index.save(directory)
                index = BucketIndex.open(directory)
        for k in (1, 10, 300):
            hits, alone = index.search(queries, k), index.search(queries, k, threads=1)
            for one, two in zip(hits, alone, strict=True):
                np.testing.assert_array_equal(one, two)
            for m in range(0, 150, 6):
                distance = np.bitwise_count(codes ^ queries[m]).sum(1, dtype=np.int64)
                nearest = np.full(8000, 9999)
                np.minimum.at(nearest, item, distance)
                order = np.lexsort((np.arange(8000), nearest))[:k]
                np.testing.assert_array_equal(hits.item[m], order)
                np.testing.assert_array_equal(hits.distance[m], nearest[order])


def test_rings_of_codes_and_pivots():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (90, 25), np.uint8)
    index = BucketIndex.build(codes, np.arange(90), 200)
    assert index.pivots.shape == (45, 4)
    pivots = index.pivots.astype("<u8").view(np.uint8)[:, :25]
    distance = np.bitwise_count(codes[:, None] ^ pivots).sum(2, dtype=np.int64)
    pivot, ring = index.rings(codes)
    np.testing.assert_array_equal(pivot, distance.argmin(1))
    np.testing.assert_array_equal(ring, distance.min(1))


def test_different_codes_of_equal_hash_are_different_buckets(monkeypatch):
    monkeypatch.setattr(build_long, "hashes", lambda words: np.zeros(len(words), np.uint64))
    rng = np.random.default_rng(0)
    few = [random_code(rng, 130) for _ in range(9)]
    pairs = [(few[rng.integers(9)], int(item)) for item in rng.integers(0, 20, 80)]
    index = BucketIndex.build(*arrays(pairs, 130), 130)
    assert len(index._segments.base.offsets) == 10
    check_search(index, pairs, few[:3], 6)


@pytest.mark.parametrize("num_bits", [104, 256, 1024])
def test_faiss_gives_the_same_distances(num_bits):
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (500, num_bits // 8), np.uint8)
    queries = codes[:20] ^ (rng.random((20, num_bits // 8)) < 0.1).astype(np.uint8)
    ours, flat = BucketIndex.build(codes, np.arange(500), num_bits), faiss.IndexBinaryFlat(num_bits)
    flat.add(codes)
    np.testing.assert_array_equal(ours.search(queries, 9).distance, flat.search(queries, 9)[0])


def test_a_codes_file_of_long_codes(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "codes.npz"
    codes = rng.integers(0, 256, (4, 33), np.uint8)
    codes[:, -1] &= 15
    file = CodeFile(
        codes=codes, item=np.array([0, 0, 1, 2]), ids=np.array(["a", "b", "c"]),
        keep_prob=np.ones(4, np.float32), box=np.zeros((4, 4), np.int32),
        labels=np.zeros((3, 0), np.uint8), num_bits=260,
    )  # fmt: skip
    codes_file.save(path, file)
    index = BucketIndex.from_file(path)
    assert index.search(codes, 1).item[:, 0].tolist() == [0, 0, 1, 2]
    for bad, reason in (
        (np.full((1, 33), 255, np.uint8), "bits set past the 260 that count"),
        (np.zeros((1, 32), np.uint8), "expected uint8 \\[n, 33\\] for 260 bits"),
    ):
        with pytest.raises(ValueError, match=reason):
            index.search(bad, 1)
