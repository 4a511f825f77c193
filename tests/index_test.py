import itertools
import tempfile
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mch_jax.files import codes_file
from mch_jax.files.codes_file import CodeFile
from mch_jax.index import BucketIndex, ball_size, bucket_index, filters, segment, streaming


def pack(words, num_bits):
    """Returns codes given as integers in the bytes of a codes file."""
    num_bytes = -(-num_bits // 8)
    rows = [list(int(word).to_bytes(num_bytes, "little")) for word in words]
    return np.array(rows, np.uint8).reshape(len(rows), num_bytes)


def exhaustive(pairs, query):
    """Returns (distance, item) of every item, nearest first, by a plain loop."""
    nearest = {}
    for code, item in pairs:
        distance = (code ^ query).bit_count()
        nearest[item] = min(distance, nearest.get(item, distance))
    return sorted((distance, item) for item, distance in nearest.items())


def algorithm_1(pairs, query, k, num_bits):
    """Returns probed and nonempty by visiting one bucket after the other until k items are met."""
    buckets, met, probed, nonempty = {}, set(), 0, 0
    for code, item in pairs:
        buckets.setdefault(code, set()).add(item)
    for mask in sorted(range(2**num_bits), key=lambda mask: (mask.bit_count(), mask)):
        bucket = buckets.get(query ^ mask, set())
        met, probed, nonempty = met | bucket, probed + 1, nonempty + bool(bucket)
        if len(met) >= k:
            break
    return probed, nonempty


def check(index, pairs, queries, ks=(1, 2, 5, 50), radii=(0, 1, 2, 5, 64)):
    num_bits = index.num_bits
    ranked = [exhaustive(pairs, query) for query in queries]
    codes = pack(queries, num_bits)
    assert len(index) == len({item for _, item in pairs})
    for k in ks:
        hits = index.search(codes, k)
        for m, query in enumerate(queries):
            expected = (ranked[m] + [(-1, -1)] * k)[:k]
            found = zip(hits.distance[m].tolist(), hits.item[m].tolist(), strict=True)
            assert list(found) == expected
            if num_bits <= 8:
                counts = algorithm_1(pairs, query, k, num_bits)
                assert (hits.probed[m], hits.nonempty[m]) == counts
            elif len(ranked[m]) < k:
                assert hits.probed[m] == 2**num_bits
            else:
                last = expected[-1][0]
                assert ball_size(num_bits, last - 1) < hits.probed[m] <= ball_size(num_bits, last)
    for radius in radii:
        ball = index.within(codes, radius)
        for m, query in enumerate(queries):
            part = slice(ball.offsets[m], ball.offsets[m + 1])
            found = zip(ball.distance[part].tolist(), ball.item[part].tolist(), strict=True)
            assert list(found) == [pair for pair in ranked[m] if pair[0] <= radius]
            near = {code for code, _ in pairs if (code ^ query).bit_count() <= radius}
            assert ball.nonempty[m] == len(near)


@pytest.fixture
def _many_pivots(monkeypatch):
    monkeypatch.setattr(segment, "CODES_PER_PIVOT", 2)


@st.composite
def code_sets(draw, max_size=40):
    """Draws a code length, pairs of code and item, and queries. Half of the codes are clustered."""
    num_bits = draw(st.sampled_from([1, 3, 5, 8, 8, 13, 16, 24, 32, 47, 48, 63, 64]))
    word = st.integers(0, 2**num_bits - 1)
    flips = st.lists(st.integers(0, num_bits - 1), max_size=3)
    centres = draw(st.lists(word, min_size=1, max_size=4))

    def near(choice):
        centre, positions = choice
        for position in positions:
            centre ^= 1 << position
        return centre

    code = st.one_of(word, st.tuples(st.sampled_from(centres), flips).map(near))
    pairs = st.lists(st.tuples(code, st.integers(0, 25)), max_size=max_size)
    return num_bits, draw(pairs), draw(st.lists(code, min_size=1, max_size=3)), pairs


@pytest.mark.usefixtures("_many_pivots")
@settings(max_examples=150, deadline=None)
@given(code_sets(), st.integers(-1, 2), st.booleans())
def test_search_and_within_equal_exhaustive_search(case, lookup_radius, together):
    num_bits, pairs, queries, _ = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "MIN_BYTES_TOGETHER", 0 if together else 2**22)
        patch.setattr(segment, "lookup_radius", lambda *_: min(lookup_radius, num_bits))
        codes = pack([code for code, _ in pairs], num_bits)
        item = np.array([item for _, item in pairs], np.int64)
        check(BucketIndex.build(codes, item, num_bits), pairs, queries)


@pytest.mark.usefixtures("_many_pivots")
@settings(max_examples=80, deadline=None)
@given(code_sets(max_size=15), st.data())
def test_sequences_of_changes_equal_exhaustive_search(case, data):
    num_bits, pairs, queries, more = case

    def arrays(pairs):
        items = np.array([item for _, item in pairs], np.int64)
        return pack([code for code, _ in pairs], num_bits), items

    lookup_radius, together = data.draw(st.integers(-1, 2)), data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(segment, "MIN_BYTES_TOGETHER", 0 if together else 2**22)
        patch.setattr(segment, "lookup_radius", lambda *_: min(lookup_radius, num_bits))
        index, pairs = BucketIndex.build(*arrays(pairs), num_bits), list(pairs)
        for _ in range(data.draw(st.integers(1, 5))):
            step = data.draw(st.sampled_from(["add", "remove", "save", "reopen", "merge"]))
            if step == "add":
                new = data.draw(more)
                index.add(*arrays(new))
                pairs += new
            elif step == "remove":
                gone = data.draw(st.lists(st.integers(0, 30), max_size=6))
                index.remove(np.array(gone, np.int64))
                pairs = [pair for pair in pairs if pair[1] not in gone]
            elif step == "merge":
                index.merge()
            else:
                index.save(directory)
                if step == "reopen":
                    index = BucketIndex.open(directory)
            check(index, pairs, queries, ks=(1, 3, 40), radii=(0, 2))


def test_figure_1_of_the_paper():
    # An image with codes 010 and 101 is found from either. 000 is one bit from the first.
    index = BucketIndex.build(pack([0b010, 0b101, 0b111], 3), np.array([0, 0, 1]), 3)
    hits = index.search(pack([0b000, 0b101, 0b010], 3), 2)
    np.testing.assert_array_equal(hits.item, [[0, 1], [0, 1], [0, 1]])
    np.testing.assert_array_equal(hits.distance, [[1, 3], [0, 1], [0, 2]])
    # From 000 the order is 000, 001, 010, 100, 011, 101, 110, 111. Three of these hold an item.
    np.testing.assert_array_equal(hits.probed, [8, 3, 6])
    np.testing.assert_array_equal(hits.nonempty, [3, 2, 2])


@pytest.mark.parametrize(
    ("num_bits", "num_codes", "num_centres", "flipped"),
    [(24, 40_000, 30, 0.04), (64, 40_000, 30, 0.04), (64, 170_000, 1, 0.07)],
)
def test_clusters_of_many_codes(num_bits, num_codes, num_centres, flipped, monkeypatch):
    """The sets are large enough for lookups, stepwise reach, pruned rings, ties and threads.

    In the last one, radius 1 and 2 are looked up because the rings near a query hold so many codes.
    """
    monkeypatch.setattr(filters, "MIN_CODES", 0)
    monkeypatch.setattr(filters, "CODES_PER_QUERY", 2**40)
    monkeypatch.setattr(segment, "RING_SHARE", 1 if num_centres > 1 else 1 / 64)
    rng = np.random.default_rng(num_bits)
    centres = rng.integers(0, 2**num_bits, num_centres, np.uint64)

    def near(count):
        flips = rng.random((count, num_bits)) < flipped
        words = flips @ (np.uint64(1) << np.arange(num_bits, dtype=np.uint64))
        noise = rng.integers(0, 2**num_bits, count, np.uint64)
        return np.where(
            rng.random(count) < 0.9, centres[rng.integers(0, num_centres, count)] ^ words, noise
        )

    words, queries = near(num_codes), near(200)
    item = np.sort(rng.integers(0, 27_000, num_codes))
    codes, query_codes = pack(words, num_bits), pack(queries, num_bits)
    index = BucketIndex.build(codes, item, num_bits)
    for later in (False, True):
        if later:
            index.remove(item[::7])
            index.add(codes[:999], item[:999])
            keep = ~np.isin(item, item[::7])
            words = np.concatenate([words[keep], words[:999]])
            item = np.concatenate([item[keep], item[:999]])
        same = np.concatenate([words[:99], queries])
        ball = index.within(pack(same, num_bits), 0)
        for m, query in enumerate(same):
            found = ball.item[ball.offsets[m] : ball.offsets[m + 1]]
            np.testing.assert_array_equal(found, np.unique(item[words == query]))
        for k in (1, 10, 300):
            hits, alone = index.search(query_codes, k), index.search(query_codes, k, threads=1)
            for one, two in zip(hits, alone, strict=True):
                np.testing.assert_array_equal(one, two)
            for m, query in enumerate(queries):
                distance = np.bitwise_count(words ^ query).astype(np.int64)
                nearest = np.full(27_000, 99)
                np.minimum.at(nearest, item, distance)
                order = np.lexsort((np.arange(27_000), nearest))[:k]
                np.testing.assert_array_equal(hits.item[m], order)
                np.testing.assert_array_equal(hits.distance[m], nearest[order])
                radius = int(nearest[order[-1]])
                codes_near = np.unique(words[distance <= radius])
                masks = np.sort(codes_near[np.bitwise_count(codes_near ^ query) == radius] ^ query)
                # Visit the buckets at the last radius as Algorithm 1 does.
                met, visited = set(np.flatnonzero(nearest < radius)), 0
                for mask in masks:
                    met |= set(item[words == query ^ mask])
                    visited += 1
                    if len(met) >= k:
                        break
                assert hits.nonempty[m] == len(codes_near) - len(masks) + visited
                if m > 20:
                    break


@pytest.mark.parametrize("num_items", [40, 2**32])
@pytest.mark.parametrize("num_bits", [40, 130])
def test_uniform_codes(num_items, num_bits, monkeypatch):
    """Most codes have to be read, by groups of queries; most items lie within the larger radii."""
    rng = np.random.default_rng(num_bits)
    codes = np.packbits(rng.integers(0, 2, (3000, num_bits)), axis=1, bitorder="little")
    item, queries = rng.integers(0, num_items, 3000), codes[:150] ^ np.uint8(1)
    index = BucketIndex.build(codes, item, num_bits)
    index.add(codes[:99], item[99:198])
    words = np.concatenate([codes, codes[:99]])
    items, owner = np.unique(np.concatenate([item, item[99:198]]), return_inverse=True)
    nearest = np.full((150, len(items)), 999)
    for m, query in enumerate(queries):
        np.minimum.at(nearest[m], owner, np.bitwise_count(words ^ query).sum(1, dtype=np.int64))
    order = np.argsort(nearest, axis=1, kind="stable")
    ranked = np.take_along_axis(nearest, order, axis=1)
    for k in (1, 7, 2000):
        hits = index.search(queries, k, threads=1)
        monkeypatch.setattr(segment, "MIN_BYTES_TOGETHER", 0)
        together = index.search(queries, k, threads=1)
        monkeypatch.undo()
        for one, two in zip(hits, together, strict=True):
            np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(hits.item[:, : len(items)], items[order[:, :k]])
        np.testing.assert_array_equal(hits.distance[:, : len(items)], ranked[:, :k])
    for radius in (1, num_bits // 3, num_bits // 2):
        ball = index.within(queries, radius)
        for m in range(150):
            part = slice(ball.offsets[m], ball.offsets[m + 1])
            size = np.searchsorted(ranked[m], radius, "right")
            np.testing.assert_array_equal(ball.item[part], items[order[m, :size]])
            np.testing.assert_array_equal(ball.distance[part], ranked[m, :size])


def test_probed_passes_2_to_the_63():
    index = BucketIndex.build(pack([2**64 - 1], 64), np.array([3]), 64)
    hits = index.search(pack([0, 2**64 - 1], 64), 1)
    assert hits.probed.tolist() == [2**64, 1]
    assert index.search(pack([0], 64), 2).probed[0] == 2**64
    assert index.search(pack([2**64 - 1], 64), 1).probed.dtype == np.int64


def test_ball_size():
    assert [ball_size(64, radius) for radius in (-1, 0, 1, 2, 64, 99)] == [
        0, 1, 65, 2081, 2**64, 2**64
    ]  # fmt: skip


def test_equal_distances_come_in_item_order_wherever_the_items_lie():
    # Items 9 to 0 are one bit from the query, in ten buckets. The first bucket visited holds 9.
    index = BucketIndex.build(pack([1 << i for i in range(10)], 16), np.arange(9, -1, -1), 16)
    hits = index.search(pack([0], 16), 3)
    np.testing.assert_array_equal(hits.item, [[0, 1, 2]])
    assert hits.probed[0] == 1 + 3


def test_searches_beside_changes_see_one_state():
    codes = pack(range(2000), 16)
    index, stop, wrong = BucketIndex.build(codes, np.arange(2000), 16), threading.Event(), []

    def search():
        while not stop.is_set():
            found = index.within(codes[:1], 16).item
            if len(found) not in (2000, 2100):
                wrong.append(len(found))

    thread = threading.Thread(target=search)
    thread.start()
    for _ in range(20):
        index.add(codes[:100], np.arange(5000, 5100))
        index.merge()
        index.remove(np.arange(5000, 5100))
    stop.set()
    thread.join()
    assert not wrong


def test_a_large_delta_is_merged(monkeypatch):
    monkeypatch.setattr(bucket_index, "MERGE_FLOOR", 10)
    index = BucketIndex.build(pack(range(8), 8), np.arange(8), 8)
    for start in range(8, 40, 4):
        index.add(pack(range(start, start + 4), 8), np.arange(start, start + 4))
        assert len(index) == start + 4
    index.merge()
    assert len(index._segments.base.items) == 40


def test_changes_during_a_merge_outlive_it(monkeypatch):
    build, started, go = segment.build_segment, threading.Event(), threading.Event()

    def slow_build(*arguments):
        if threading.current_thread() is merger:
            started.set()
            assert go.wait(60)
        return build(*arguments)

    pairs = [(code, code % 50) for code in range(200)]
    index = BucketIndex.build(pack(range(200), 16), np.arange(200) % 50, 16)
    merger = threading.Thread(target=index.merge)
    monkeypatch.setattr(segment, "build_segment", slow_build)
    merger.start()
    assert started.wait(60)
    index.add(pack([7, 300], 16), np.array([3, 70]))
    index.remove(np.array([5, 70]))
    index.add(pack([9], 16), np.array([5]))
    pairs += [(7, 3), (300, 70)]
    pairs = [pair for pair in pairs if pair[1] not in (5, 70)] + [(9, 5)]
    check(index, pairs, [0, 7, 300])
    go.set()
    merger.join()
    check(index, pairs, [0, 7, 300])
    assert len(index._segments.base.items) == 200  # the merge ignores later removals


def test_visits_are_the_buckets_of_algorithm_1():
    rng = np.random.default_rng(5)
    words, item = rng.integers(0, 256, 60), rng.integers(0, 30, 60)
    index = BucketIndex.build(pack(words[:40], 8), item[:40], 8)
    index.add(pack(words[40:], 8), item[40:])
    index.remove(np.array([2, 3]))
    alive = ~np.isin(item, [2, 3])
    pairs = list(zip(words[alive].tolist(), item[alive].tolist(), strict=True))
    queries = rng.integers(0, 256, 10)
    for k in (1, 4, 20, 31, None):
        visits = index.visits(pack(queries, 8), k)
        for m, query in enumerate(queries.tolist()):
            part = slice(visits.offsets[m], visits.offsets[m + 1])
            masks, met = [], set()
            for mask in sorted(range(256), key=lambda mask: (mask.bit_count(), mask)):
                bucket = {i for code, i in pairs if code == query ^ mask}
                if bucket and len(met) < (k or 31):
                    fresh = len(bucket - met)
                    masks.append((mask, min(fresh, (k or 31) - len(met))))
                    met |= bucket
            found = zip(visits.mask[part].tolist(), visits.new_items[part].tolist(), strict=True)
            assert list(found) == masks


def test_from_file_and_its_refusals(tmp_path):
    path = tmp_path / "codes.npz"
    good = CodeFile(
        codes=pack([1, 2], 12), item=np.array([0, 1]), ids=np.array(["a", "b"]),
        keep_prob=np.ones(2, np.float32), box=np.zeros((2, 4), np.int32),
        labels=np.zeros((2, 0), np.uint8), num_bits=12,
    )  # fmt: skip
    codes_file.save(path, good)
    np.testing.assert_array_equal(BucketIndex.from_file(path).search(pack([2], 12), 1).item, [[1]])
    too_long = good._replace(codes=np.zeros((2, 129), np.uint8), num_bits=1032)
    for file, reason in (
        (good._replace(codes=pack([1, 2**14], 16)), "padding must be 0"),
        (too_long, "num_bits is 1032, expected 1 to 1024"),
    ):
        codes_file.save(path, file)
        with pytest.raises(ValueError, match=reason) as caught:
            BucketIndex.from_file(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_wrong_arguments_are_named():
    index = BucketIndex.build(pack([1, 2], 8), np.array([0, 1]), 8)
    query = pack([1], 8)
    for call, reason in (
        (
            lambda: BucketIndex.build(np.zeros((1, 129), np.uint8), np.array([0]), 1025),
            "num_bits is 1025",
        ),
        (lambda: BucketIndex.build(query, np.array([2**32]), 8), "expected 0 to 4294967295"),
        (lambda: BucketIndex.build(query, np.array([0.5]), 8), "expected integers"),
        (lambda: index.search(query, 0), "k is 0"),
        (lambda: index.within(query, -1), "radius is -1"),
        (lambda: index.within(query, 1.5), "radius is 1.5"),  # pyright: ignore[reportArgumentType]
        (lambda: index.search(query[0], 1), "expected uint8 \\[n, 1\\]"),
        (lambda: index.search(query.astype(np.int64), 1), "codes are int64"),
    ):
        with pytest.raises(ValueError, match=reason):
            call()


@pytest.mark.parametrize("num_bits", [32, 64])
def test_faiss_both_ways(num_bits):
    """A FAISS index of our codes gives our distances, and an index of its codes gives the same."""
    faiss = pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (500, num_bits // 8), np.uint8)
    item = np.sort(rng.integers(0, 300, 500))
    queries = codes[:20] ^ (rng.random((20, num_bits // 8)) < 0.1)
    ours = BucketIndex.build(codes, item, num_bits)
    flat = faiss.IndexBinaryFlat(num_bits)
    flat.add(codes)
    distance, row = flat.search(queries, 500)
    for m in range(20):
        nearest, first = np.unique(item[row[m]], return_index=True)
        order = np.lexsort((nearest, distance[m, first]))[:10]
        hits = ours.search(queries[m : m + 1], 10)
        np.testing.assert_array_equal(hits.item[0], nearest[order])
        np.testing.assert_array_equal(hits.distance[0], distance[m, first][order])
    theirs = faiss.vector_to_array(flat.xb).reshape(flat.ntotal, flat.code_size)
    again = BucketIndex.build(theirs, item, num_bits)
    for one, two in zip(again.search(queries, 5), ours.search(queries, 5), strict=True):
        np.testing.assert_array_equal(one, two)


def test_all_pairs_of_short_codes():
    """Checks every triple of two-bit codes with every query and every k."""
    for codes in itertools.product(range(4), repeat=3):
        pairs = list(zip(codes, (0, 1, 1), strict=True))
        index = BucketIndex.build(pack(codes, 2), np.array([0, 1, 1]), 2)
        check(index, pairs, range(4), ks=(1, 2, 3), radii=(0, 1, 2))


def test_removing_a_large_item_takes_little_memory(tmp_path):
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 3000)
    item = np.sort(rng.choice(2**32, 3000, replace=False)).astype(np.int64)
    index = BucketIndex.build(pack(words, 32), item, 32)
    index.add(pack([5, 6], 32), np.array([2**32 - 1, 2**32 - 2]))
    gone = np.array([item[0], item[1500], item[-1], 2**32 - 1, 7])
    tracemalloc.start()
    index.remove(gone)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20  # one bit per possible item would take 512 MiB
    pairs = [*zip(words.tolist(), item.tolist(), strict=True), (5, 2**32 - 1), (6, 2**32 - 2)]
    pairs = [(code, one) for code, one in pairs if one not in set(gone.tolist())]
    index.save(tmp_path)
    for searched in (index, BucketIndex.open(tmp_path)):
        assert len(searched) == len(pairs)
        for query in (5, int(words[0]), int(words[1500])):
            found = searched.search(pack([query], 32), 10)
            expected = exhaustive(pairs, query)[:10]
            assert list(zip(found.distance[0], found.item[0], strict=True)) == expected
    tracemalloc.start()
    found = index.search(pack([5], 32), 3, allowed=np.sort(item[5:9]))
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()
    allowed = [pair for pair in pairs if pair[1] in item[5:9]]
    assert found.item[0].tolist() == [one for _, one in exhaustive(allowed, 5)[:3]]


@pytest.mark.parametrize("num_bits", [7, 20, 64, 70])
def test_an_index_of_a_stream_is_that_of_all_codes(num_bits, monkeypatch):
    for name, size in (("BLOCK_PAIRS", 16), ("UNIT_PAIRS", 20), ("MERGED_PAIRS", 10)):
        monkeypatch.setattr(streaming, name, size)
    monkeypatch.setattr(streaming, "SAMPLE_PAIRS", 64)
    monkeypatch.setattr(segment, "CODES_PER_PIVOT", 2)
    rng = np.random.default_rng(num_bits)
    pool = [int.from_bytes(rng.bytes(9), "little") % 2**num_bits for _ in range(60)]
    words = [pool[i] ^ (1 << int(rng.integers(num_bits))) for i in rng.integers(0, 60, 300)]
    item = rng.integers(0, 150, 300)
    codes, cuts = pack(words, num_bits), [0, 0, 5, 100, 101, 290, 300]
    blocks = [(codes[i:j], item[i:j]) for i, j in itertools.pairwise(cuts)]
    index = BucketIndex.build_from(iter(blocks), num_bits)
    pairs = list(zip(words, item.tolist(), strict=True))
    check(index, pairs, words[:3] + pool[:3])
    assert index.num_codes == len(set(pairs))
    index.remove(np.arange(0, 150, 3))
    index.add(codes[:20], np.arange(200, 220))
    index.merge()
    pairs = [(code, one) for code, one in pairs if one % 3]
    check(index, pairs + list(zip(words[:20], range(200, 220), strict=True)), words[:3])


def test_a_stream_is_checked_block_by_block():
    assert len(BucketIndex.build_from([], 64)) == 0
    good = np.zeros((2, 8), np.uint8), np.arange(2)
    with pytest.raises(ValueError, match=r"block 1: codes are .* expected uint8 \[n, 8\]"):
        BucketIndex.build_from([good, (good[0][:, :4], good[1])], 64)
    with pytest.raises(ValueError, match="num_bits is 0, expected 1 to 1024"):
        BucketIndex.build_from([], 0)
