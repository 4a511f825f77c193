"""The order in which people see answers, against a loop."""

import numpy as np
import pytest

from mch_jax.database import Database
from mch_jax.files.codes_file import CodeFile
from mch_jax.query_codes import ordering_margins

BITS, ITEMS, CASES = 6, 40, 60


def made_up(rng):
    """Returns a database in which many items share a code, and a query of several codes."""
    item = np.sort(np.concatenate([np.arange(ITEMS), rng.integers(0, ITEMS, 30)]))
    file = CodeFile(
        codes=np.packbits(rng.random((len(item), BITS)) < 0.5, axis=1, bitorder="little"),
        item=item,
        ids=np.array([f"sub/{i}.jpg" for i in range(ITEMS)]),
        keep_prob=np.ones(len(item), np.float32),
        box=np.zeros((len(item), 4), np.int32),
        labels=np.zeros((ITEMS, 0), np.uint8),
        num_bits=BITS,
    )
    logits = rng.normal(size=(rng.integers(1, 4), BITS)).astype(np.float32)
    return Database(file), np.packbits(logits >= 0, axis=1, bitorder="little"), np.abs(logits)


def by_loop(database, query, margins, rows):
    """Returns the least bits and, among codes at these, the least asymmetric distance and row."""
    best = []
    for row in rows:
        for code, margin in zip(query, margins, strict=True):
            flips = int(database.codes[row, 0] ^ code[0])
            bits = [bit for bit in range(BITS) if flips >> bit & 1]
            best.append((len(bits), float(margin[bits].sum(dtype=np.float64)), row))
    return min(best)


def test_equal_distances_are_ordered_by_the_logits():
    rng, ties = np.random.default_rng(0), 0
    for _ in range(CASES):
        database, query, margins = made_up(rng)
        for is_base in (False, True):
            rows = [database.rows(i)[: 1 if is_base else None] for i in range(ITEMS)]
            ranked = sorted(
                (*by_loop(database, query, margins, rows[item])[:2], item) for item in range(ITEMS)
            )
            for k in (1, 7, 60):
                near, hits = database.search(query, k, is_base, margins)
                assert [x.item for x in near] == [item for *_, item in ranked[:k]]
                assert [x.distance for x in near] == [bits for bits, *_ in ranked[:k]]
                for x in near:
                    assert x.row == by_loop(database, query, margins, rows[x.item])[2]
                ties += [x.item for x in near] != hits.item[0][: len(near)].tolist()
    assert ties > CASES


def test_an_item_comes_first_among_its_own_answers():
    rng = np.random.default_rng(1)
    for item in range(ITEMS):
        database, _, margins = made_up(rng)
        code = database.whole_code(item)
        for given in (None, margins[:1]):
            near, _ = database.search(code, 3, margins=given, first=item)
            assert (near[0].item, near[0].distance, len(near)) == (item, 0, 3)
            assert len({x.item for x in near}) == 3
            assert [x.distance for x in near] == sorted(x.distance for x in near)
            others = [x.item for x in database.search(code, 9, margins=given)[0] if x.item != item]
            assert [x.item for x in near[1:]] == others[:2]


def test_an_item_that_is_further_away_does_not_come_first():
    database, query, margins = made_up(np.random.default_rng(2))
    last = database.search(query, ITEMS, margins=margins)[0][-1]
    assert last.distance > 0
    found = database.search(query, ITEMS, margins=margins, first=last.item)
    assert found[0] == database.search(query, ITEMS, margins=margins)[0]


@pytest.mark.parametrize(
    ("path", "item"),
    [
        ("sub/3.jpg", 3),
        ("/photos/of/sub/39.jpg", 39),
        ("3.jpg", None),
        ("other/3.jpg", None),
        ("/", None),
    ],
)
def test_a_path_is_recognised_by_its_end(path, item):
    assert made_up(np.random.default_rng(0))[0].item_of(path) == item


def test_one_bit_more_always_costs_more():
    rng = np.random.default_rng(3)
    margins = (10.0 ** rng.uniform(-9, 9, (500, 3, 64))).astype(np.float32)
    for one in (*margins, np.zeros((2, 64), np.float32)):
        costs = np.sort(ordering_margins(one), 1).astype(np.float64)
        few, many = (x.cumsum(1) for x in (costs[:, ::-1], costs))
        assert (few[:, :-1].max(0) < many[:, 1:].min(0)).all()
