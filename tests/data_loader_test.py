import pathlib
import threading

import labelled_folder
import numpy as np
import pytest
from PIL import Image

from mch_jax import data


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    return labelled_folder.make(tmp_path)


@pytest.fixture
def scenes() -> data.Dataset:
    return data.scenes(size=32, num_train=20, num_database=7, num_query=5)


def take(iterator, count: int) -> list[dict[str, np.ndarray]]:
    batches = [next(iterator) for _ in range(count)]
    iterator.close()
    return batches


def test_batches_have_images_rows_and_labels(scenes):
    (batch,) = take(data.batches(scenes, scenes.train, 24, 6), 1)
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
        "image": ("uint8", (6, 24, 24, 3)),
        "row": ("int64", (6,)),
        "labels": ("uint8", (6, 14)),
    }
    for image, row, labels in zip(*(batch[k] for k in ("image", "row", "labels")), strict=True):
        expected = Image.fromarray(scenes.read(int(row))).resize(
            (24, 24), Image.Resampling.BILINEAR
        )
        np.testing.assert_array_equal(image, np.asarray(expected))
        np.testing.assert_array_equal(labels, scenes.labels[row])


def test_each_epoch_has_every_row_once_in_its_own_order(scenes):
    batches = [b["row"].tolist() for b in take(data.batches(scenes, scenes.train, 32, 5), 8)]
    first, second = sum(batches[:4], []), sum(batches[4:], [])
    assert sorted(first) == sorted(second) == scenes.train.tolist()
    assert first != second != scenes.train.tolist()


@pytest.mark.parametrize("start", [1, 3, 4, 7])
def test_resumed_batches_equal_uninterrupted_ones(scenes, start):
    """With 20 rows and batches of 6, batch 3 is the first of the second epoch."""
    whole = take(data.batches(scenes, scenes.train, 32, 6, seed=5), 9)
    rest = take(data.batches(scenes, scenes.train, 32, 6, seed=5, start_step=start), 9 - start)
    for expected, batch in zip(whole[start:], rest, strict=True):
        for key in expected:
            np.testing.assert_array_equal(batch[key], expected[key])


def test_seeds_give_different_orders(scenes):
    """No two epochs have the same order, whatever their seeds."""
    orders = set()
    for seed in range(4):
        got = take(data.batches(scenes, scenes.train, 32, 20, seed=seed), 3)
        orders |= {tuple(batch["row"].tolist()) for batch in got}
    assert len(orders) == 12


def test_remainder_and_single_pass(scenes):
    settings = {"size": 32, "batch_size": 6, "repeat": False}
    dropped = list(data.batches(scenes, scenes.train, **settings))
    kept = list(data.batches(scenes, scenes.train, drop_remainder=False, **settings))
    assert [len(b["row"]) for b in dropped] == [6, 6, 6]
    assert [len(b["row"]) for b in kept] == [6, 6, 6, 2]
    assert sorted(np.concatenate([b["row"] for b in kept]).tolist()) == scenes.train.tolist()


def test_epoch_keeps_the_order_and_does_not_pad(scenes):
    rows = scenes.database[::-1]
    got = list(data.epoch(scenes, rows, 32, 8))
    assert [len(b["row"]) for b in got] == [8, 8, 8, 3]
    np.testing.assert_array_equal(np.concatenate([b["row"] for b in got]), rows)
    later = list(data.epoch(scenes, rows, 32, 8, start_step=2))
    np.testing.assert_array_equal(np.concatenate([b["row"] for b in later]), rows[16:])
    assert list(data.epoch(scenes, rows, 32, 8, start_step=4)) == []
    assert list(data.epoch(scenes, rows[:0], 32, 8)) == []


def test_too_few_rows_are_refused(scenes):
    with pytest.raises(ValueError, match="batch_size is 21, but scenes has 20 rows"):
        data.batches(scenes, scenes.train, 32, 21)


def test_a_photo_damaged_after_the_audit_is_named(root):
    dataset = data.load("folder", root)
    (root / "4.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="'4.jpg' does not decode"):
        list(data.epoch(dataset, dataset.database, 16, 2))


def test_closing_the_iterator_ends_its_threads(scenes):
    before = set(threading.enumerate())
    take(data.batches(scenes, scenes.train, 32, 4), 2)
    started = [t for t in set(threading.enumerate()) - before if "grain" in t.name]
    for thread in started:
        thread.join(5)
    assert not any(thread.is_alive() for thread in started)
