import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mch_jax import codes, histograms, index, metrics, pairs
from mch_jax.evaluation import evaluate
from mch_jax.files.codes_file import CodeFile
from mch_jax.kernels import histogram as histogram_kernels

NUM_BITS = 11


class Case:
    """60 items with up to 3 codes each, 9 queries and 40 classes; some items have no label."""

    def __init__(self):
        rng = np.random.default_rng(0)
        signs = rng.choice(np.array([-1, 1], np.int8), (60, 3, NUM_BITS))
        self.item = np.sort(np.concatenate([np.arange(60), rng.integers(0, 60, 70)]))
        slot = np.concatenate([np.arange(n) % 3 for n in np.bincount(self.item)])
        self.signs = signs[self.item, slot]
        self.queries = rng.choice(np.array([-1, 1], np.int8), (9, NUM_BITS))
        self.labels = (rng.random((60, 40)) < 0.02).astype(np.uint8)
        self.query_labels = (rng.random((9, 40)) < 0.05).astype(np.uint8)
        self.query_labels[0] = 0
        self.relevant = self.query_labels.astype(int) @ self.labels.T > 0

    def histogram(self) -> np.ndarray:
        as_bytes = [
            codes.to_bytes(np.asarray(codes.pack(jnp.asarray(x))), NUM_BITS)
            for x in (self.queries, self.signs)
        ]
        return metrics.histogram(as_bytes[0], as_bytes[1], self.item, self.relevant, NUM_BITS)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def orders(groups: list[tuple[int, int]]):
    """Yields each order of relevant (1) and other (0) items that keeps the groups in order."""
    each = [
        [
            [int(i in chosen) for i in range(m + r)]
            for chosen in itertools.combinations(range(m + r), r)
        ]
        for m, r in groups
    ]
    for order in itertools.product(*each):
        yield list(itertools.chain.from_iterable(order))


def precision_average(order: list[int], cutoff: int | None) -> float:
    """Returns the average precision of one ranking, by its definition."""
    found, total = 0, 0.0
    for rank, relevant in enumerate(order[:cutoff], 1):
        found += relevant
        total += relevant * found / rank
    return total / found if found else 0.0


def test_figure_1():
    # The database holds an item with the codes 010 and 101; the query has 101.
    query, item_codes, item = (
        np.array([[0b101]], np.uint8),
        np.array([[0b010], [0b101]], np.uint8),
        [0, 0],
    )
    relevant = np.array([[True]])
    one = metrics.histogram(query, item_codes[:1], np.array(item[:1]), relevant, 3)
    two = metrics.histogram(query, item_codes, np.array(item), relevant, 3)
    assert one[0, :, 1].tolist() == [0, 0, 0, 1]
    assert two[0, :, 1].tolist() == [1, 0, 0, 0]
    assert metrics.within_radius(one, 0) == (0, 0, 0)
    assert metrics.within_radius(two, 0) == (1, 1, 1)
    assert metrics.average_number_of_codes(np.array(item), 1) == 2


def test_histogram_equals_the_loop(case):
    expected = np.zeros((9, NUM_BITS + 1, 2), int)
    for q, query in enumerate(case.queries):
        for i in range(60):
            distance = min(int((query != s).sum()) for s in case.signs[case.item == i])
            expected[q, distance, int(case.relevant[q, i])] += 1
    np.testing.assert_array_equal(case.histogram(), expected)


def test_histogram_takes_codes_in_any_order(case):
    shuffled = Case()
    order = np.random.default_rng(1).permutation(len(case.item))
    shuffled.item, shuffled.signs = case.item[order], case.signs[order]
    np.testing.assert_array_equal(shuffled.histogram(), case.histogram())


def test_histogram_of_a_large_database_does_not_depend_on_threads():
    rng = np.random.default_rng(0)
    num_items = histogram_kernels.BLOCK + histogram_kernels.PIECE + 3
    query, database = (random_file(rng, n, most, 24, 3) for n, most in ((5, 1), (num_items, 3)))
    relevant = rng.random((5, num_items)) < 0.3  # not derived from labels
    near = np.array([[c ^ q for c in database.codes] for q in query.codes[:1]])[0]
    distance = np.bitwise_count(near).sum(1)
    starts = np.flatnonzero(np.diff(database.item, prepend=-1))
    expected = np.zeros((25, 2), np.int64)
    np.add.at(expected, (np.minimum.reduceat(distance, starts), relevant[0].astype(int)), 1)
    results = [
        metrics.histogram(query.codes, database.codes, database.item, relevant, 24, threads=n)
        for n in (1, 2)
    ]
    np.testing.assert_array_equal(results[0][0], expected)
    np.testing.assert_array_equal(results[0], results[1])
    assert metrics.histogram(
        query.codes[:0], database.codes, database.item, relevant[:0], 24
    ).shape == (0, 25, 2)


@pytest.mark.parametrize("on_device", [False, True])
def test_label_histogram_equals_histogram(case, on_device):
    first = np.searchsorted(case.item, np.arange(60))
    last = np.searchsorted(case.item, np.arange(60), "right") - 1
    rows = np.minimum(first[:, None] + np.arange(np.bincount(case.item).max()), last[:, None])
    packed = np.asarray(codes.pack(jnp.asarray(case.signs)))[rows]
    result = histograms.label_histogram(
        np.asarray(codes.pack(jnp.asarray(case.queries))),
        histograms.items_last(packed),
        pairs.pack_labels(case.query_labels),
        np.ascontiguousarray(pairs.pack_labels(case.labels).T),
        NUM_BITS,
        on_device=on_device,
    )
    np.testing.assert_array_equal(result, case.histogram())
    # A query without labels is relevant to nothing.
    assert not result[0, :, 1].any()


@pytest.mark.parametrize(
    ("num_bits", "num_codes", "num_items", "num_classes"),
    [
        (64, 6, 2 * histogram_kernels.PIECE + 3, 80),  # one uint64 word, pieces that are not full
        (48, 2, 5, 130),
        (32, 1, histogram_kernels.BLOCK + 1, 1),
        (130, 3, 70, 33),  # several words
        (16, 2, 0, 5),
    ],
)
def test_label_histogram_on_the_host_equals_the_device(num_bits, num_codes, num_items, num_classes):
    rng = np.random.default_rng(num_bits)

    def words(*shape):
        return rng.integers(0, 2**32, shape, np.uint32)

    def labels(count):
        return pairs.pack_labels((rng.random((count, num_classes)) < 0.03).astype(np.uint8))

    mask = np.asarray(codes.pack(jnp.ones((1, num_bits), jnp.int8)))
    queries = words(3, codes.num_words(num_bits)) & mask
    packed = words(num_codes, codes.num_words(num_bits), num_items) & mask[0][None, :, None]
    arguments = (queries, packed, labels(3), np.ascontiguousarray(labels(num_items).T), num_bits)
    host, device = (histograms.label_histogram(*arguments, on_device=x) for x in (False, True))
    np.testing.assert_array_equal(host, device)
    assert (host.sum((1, 2)) == num_items).all()
    one_thread = histograms.label_histogram(*arguments, on_device=False, threads=1)
    np.testing.assert_array_equal(one_thread, host)


def random_file(rng, num_items: int, most: int, num_bits: int, num_classes: int) -> CodeFile:
    """Returns items with 1 to `most` codes, similar enough that small distances occur."""
    item = np.repeat(np.arange(num_items), rng.integers(1, most + 1, num_items))
    bits = rng.random((len(item), num_bits)) < rng.random((1, num_bits))
    return CodeFile(
        codes=np.packbits(bits, axis=1, bitorder="little"),
        item=item,
        ids=np.array([str(i) for i in range(num_items)], np.str_),
        keep_prob=np.ones(len(item), np.float32),
        box=np.zeros((len(item), 4), np.int32),
        labels=(rng.random((num_items, num_classes)) < 2 / num_classes).astype(np.uint8),
        num_bits=num_bits,
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    num_bits=st.integers(1, 140),
    most=st.integers(1, 7),
    num_items=st.integers(1, 70),
    num_classes=st.integers(1, 70),
)
@settings(deadline=None, max_examples=60)
def test_histogram_of_files_equals_the_double_loop(seed, num_bits, most, num_items, num_classes):
    rng = np.random.default_rng(seed)
    query = random_file(rng, 4, 1, num_bits, num_classes)
    database = random_file(rng, num_items, most, num_bits, num_classes)
    integers = [[int.from_bytes(code, "little") for code in x.codes] for x in (query, database)]
    expected = np.zeros((4, num_bits + 1, 2), np.int64)
    for m, i in itertools.product(range(4), range(num_items)):
        own = np.flatnonzero(database.item == i)
        distance = min((integers[0][m] ^ integers[1][c]).bit_count() for c in own)
        expected[m, distance, int((query.labels[m] & database.labels[i]).any())] += 1
    np.testing.assert_array_equal(evaluate.histogram(query, database), expected)
    relevant = query.labels.astype(int) @ database.labels.T > 0
    plain = metrics.histogram(query.codes, database.codes, database.item, relevant, num_bits)
    np.testing.assert_array_equal(plain, expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    num_bits=st.integers(1, 64),
    most=st.integers(1, 6),
    num_items=st.integers(1, 300),
    ks=st.lists(st.integers(1, 300), max_size=6),
)
@settings(deadline=None, max_examples=60)
def test_buckets_visited_are_those_of_a_search_for_each_k(seed, num_bits, most, num_items, ks):
    rng = np.random.default_rng(seed)
    query = random_file(rng, 5, 1, num_bits, 3)
    database = random_file(rng, num_items, most, num_bits, 3)
    ks = [k for k in ks if k <= num_items]
    counts = evaluate.histogram(query, database).sum(2)
    probed, nonempty = index.visit_counts(
        query.codes, database.codes, database.item, num_bits, counts, ks
    )
    assert probed.shape == nonempty.shape == (5, len(ks))
    built = index.BucketIndex.build(database.codes, database.item, num_bits)
    for column, k in enumerate(ks):
        hits = built.search(query.codes, k)
        np.testing.assert_array_equal(probed[:, column], hits.probed.astype(np.float64))
        np.testing.assert_array_equal(nonempty[:, column], hits.nonempty)


def test_histogram_refuses_what_does_not_fit():
    code, relevant = np.zeros((1, 2), np.uint8), np.ones((1, 1), bool)
    with pytest.raises(ValueError, match="expected 1 bytes per code"):
        metrics.histogram(code, code, np.array([0]), relevant, 8)
    with pytest.raises(ValueError, match="every one of the 1 items"):
        metrics.histogram(code, code, np.array([1]), relevant, 16)


@pytest.mark.parametrize("cutoff", [None, 1, 2, 3, 4, 5, 6, 100])
@pytest.mark.parametrize(
    "groups",
    [
        [(0, 1)],
        [(2, 2), (3, 1)],
        [(1, 0), (0, 2), (0, 0), (2, 3)],
        [(4, 3)],
        [(3, 0), (1, 1)],
        [(0, 3), (3, 0)],
    ],
)
def test_average_precision_is_the_mean_over_all_orders_of_ties(groups, cutoff):
    scores = [precision_average(order, cutoff) for order in orders(groups)]
    result = metrics.average_precision(np.array([groups]), cutoff)
    np.testing.assert_allclose(result, [np.mean(scores)], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cutoff", [None, 7, 25])
def test_average_precision_is_close_to_the_mean_of_random_orders(case, cutoff):
    histogram, rng = case.histogram(), np.random.default_rng(0)
    expected = []
    for query in histogram:
        scores = []
        for _ in range(2000):
            order = [rng.permutation([0] * m + [1] * r) for m, r in query if m + r]
            scores.append(precision_average(np.concatenate(order).tolist(), cutoff))
        expected.append(np.mean(scores))
    np.testing.assert_allclose(metrics.average_precision(histogram, cutoff), expected, atol=0.015)


def test_average_precision_of_a_large_group():
    # 100,000 tied items, 1,000 relevant: the rank of each is uniform.
    histogram = np.array([[[99_000, 1_000]]])
    assert metrics.average_precision(histogram)[0] == pytest.approx(0.01, abs=2e-4)
    assert metrics.average_precision(histogram, 5000)[0] == pytest.approx(0.0117, abs=2e-3)


def test_means_leave_out_queries_with_no_relevant_item():
    histogram = np.array([[[1, 0], [0, 0]], [[0, 1], [1, 0]], [[0, 0], [1, 1]]])
    assert metrics.has_relevant(histogram).tolist() == [False, True, True]
    assert metrics.mean_average_precision(histogram) == pytest.approx((1 + 0.75) / 2)
    assert metrics.within_radius(histogram, 0) == (0.5, 0.5, 0.5)
    assert metrics.within_radius(histogram, 1) == (0.5, 1, 1)
    # All tied: precision at the relevant one is 1 or 1 / 2.
    assert metrics.chance_map(histogram) == pytest.approx(0.75)
    for measure in (metrics.mean_average_precision, metrics.chance_map):
        assert measure(histogram[:1]) == 0
    assert metrics.within_radius(histogram[:1], 0) == (0, 0, 0)
    assert metrics.f1_at(histogram[:1], 1) == 0


@pytest.mark.parametrize("radius", [0, 2, NUM_BITS])
def test_within_radius_equals_the_loop(case, radius):
    precision, recall, nonempty = [], [], []
    for q, query in enumerate(case.queries):
        if not case.relevant[q].any():
            continue
        ball = [
            i
            for i in range(60)
            if min((query != s).sum() for s in case.signs[case.item == i]) <= radius
        ]
        found = sum(case.relevant[q, i] for i in ball)
        precision.append(found / len(ball) if ball else 0)
        recall.append(found / case.relevant[q].sum())
        nonempty.append(bool(ball))
    result = metrics.within_radius(case.histogram(), radius)
    np.testing.assert_allclose(result, [np.mean(x) for x in (precision, recall, nonempty)])


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_f1_is_the_mean_over_all_orders_of_ties(k):
    groups = [(1, 1), (3, 2)]
    scores = []
    for order in orders(groups):
        found = sum(order[:k])
        precision, recall = found / min(k, len(order)), found / 3
        scores.append(2 * precision * recall / (precision + recall) if found else 0)
    assert metrics.f1_at(np.array([groups]), k) == pytest.approx(np.mean(scores))
