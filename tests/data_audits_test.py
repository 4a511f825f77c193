import dataclasses
import pathlib

import labelled_folder
import numpy as np
import pytest
from labelled_folder import NAMES, encoded, picture, write_lists, write_photos

from mch_jax import data


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    return labelled_folder.make(tmp_path)


@pytest.fixture
def scenes() -> data.Dataset:
    return data.scenes(size=32, num_train=20, num_database=7, num_query=5)


def test_audit_counts(root):
    _, counts = data.audit(data.load("folder", root))
    del counts["per_class"]
    # Queries: labels 10 and 01. Database: 11 00 10 01 11 00 10 01, half of it relevant to each.
    harmonic = sum(1 / k for k in range(1, 9)) / 8
    assert counts == {
        "name": root.name,
        "n": 10,
        "queries": 2,
        "database": 8,
        "train": 5,
        "classes": 2,
        "damaged": [],
        "reasons": [],
        "unlabelled": 2,
        "notes": [],
        "labels_per_photo": 1.0,
        "queries_without_relevant": 0,
        "relevant_share": 0.5,
        "chance_map": pytest.approx(3 / 7 + harmonic * 4 / 7),
    }


def test_chance_map_is_the_mean_over_random_rankings(root):
    _, counts = data.audit(data.load("folder", root))
    rng = np.random.default_rng(0)
    precisions = []
    for _ in range(20_000):
        places = np.sort(rng.permutation(8)[:4]) + 1
        precisions.append((np.arange(1, 5) / places).mean())
    assert counts["chance_map"] == pytest.approx(np.mean(precisions), abs=0.005)


def test_queries_without_relevant_photos_are_counted_and_left_out(root):
    dataset = data.load("folder", root)
    labels = dataset.labels.copy()
    labels[0] = 0
    _, counts = data.audit(dataclasses.replace(dataset, labels=labels))
    assert counts["queries_without_relevant"] == 1
    assert counts["relevant_share"] == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": [0, 2]}, "1 queries are also in the database, '2.jpg' first"),
        ({"train": [0, 3]}, "1 training photos are not in the database, '0.jpg' first"),
        ({"query": []}, "the query split is empty"),
        ({"train": []}, "the train split is empty"),
        ({"query": [0, 0]}, "query rows repeat"),
        ({"query": [0, 10]}, "query rows repeat or lie outside 0 to 9"),
        ({"ids": np.array(["a"] * 2 + NAMES[2:])}, "1 photos are listed more than once, 'a' first"),
        ({"classes": ("cat",)}, r"shape \(10, 2\), expected \(10, 1\)"),
        ({"labels": np.full((10, 2), 2, np.uint8)}, "label 2, expected 0 or 1"),
    ],
)
def test_wrong_splits_and_labels_are_refused(root, change, message):
    change = {k: np.array(v, np.int64) if isinstance(v, list) else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message):
        data.audit(dataclasses.replace(data.load("folder", root), **change))


def test_lists_with_a_query_in_the_database_are_refused(tmp_path):
    write_photos(tmp_path)
    write_lists(tmp_path, query=["0.jpg 1 0", "2.jpg 1 1"])
    with pytest.raises(ValueError, match="1 queries are also in the database, '2.jpg' first"):
        data.audit(data.load("folder", tmp_path))


@pytest.fixture
def damaged(root) -> pathlib.Path:
    """A folder with a truncated training photo, a query that is text, and a missing photo."""
    (root / "4.jpg").write_bytes((root / "4.jpg").read_bytes()[:-200])
    (root / "0.jpg").write_text("not a photo")
    (root / "9.jpg").unlink()
    return root


def test_damaged_photos_are_refused(damaged):
    message = "3 of 10 photos are damaged, first: '0.jpg' does not decode.*set on_damaged to skip"
    with pytest.raises(ValueError, match=message) as error:
        data.audit(data.load("folder", damaged))
    assert "\n" not in str(error.value)


def test_damaged_photos_are_skipped_from_every_split(damaged):
    before = data.load("folder", damaged)
    dataset, counts = data.audit(before, on_damaged="skip")
    assert counts["damaged"] == ["0.jpg", "4.jpg", "9.jpg"]
    assert "'4.jpg' does not decode: image file is truncated" in counts["reasons"][1]
    assert "'9.jpg' does not open: No such file" in counts["reasons"][2]
    assert [counts[key] for key in ("n", "queries", "database", "train")] == [7, 1, 6, 4]
    for split in ("query", "database", "train"):
        kept = [
            name for name in before.ids[getattr(before, split)] if name not in counts["damaged"]
        ]
        assert dataset.ids[getattr(dataset, split)].tolist() == kept
    for row, name in enumerate(dataset.ids):
        old = NAMES.index(name)
        np.testing.assert_array_equal(dataset.labels[row], before.labels[old])
        np.testing.assert_array_equal(dataset.read(row), before.read(old))
    assert (dataset.sizes == [40, 30]).all()


def test_skipping_every_query_is_refused(damaged):
    (damaged / "1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="the query split is empty"):
        data.audit(data.load("folder", damaged), on_damaged="skip")


def test_on_damaged_lists_its_choices(scenes):
    with pytest.raises(ValueError, match="on_damaged is 'ignore', expected refuse or skip"):
        data.audit(scenes, on_damaged="ignore")


def test_a_kept_audit_is_repeated_only_where_a_file_changed(root, tmp_path):
    kept, read = tmp_path / "audit.npz", []

    def audit(on_damaged="skip"):
        read.clear()
        dataset = data.load("folder", root)
        counted = dataclasses.replace(
            dataset, read=lambda row: (read.append(row), dataset.read(row))[1]
        )
        found, counts = data.audit(counted, on_damaged, kept)
        return found.sizes.tolist(), found.ids.tolist(), counts

    first = audit()
    assert sorted(read) == list(range(10))
    assert audit() == first
    assert read == []
    (root / "3.jpg").write_bytes(b"no photo")
    second = audit()
    assert read == [3]  # the photo whose bytes changed
    assert second[2]["damaged"] == ["3.jpg"]
    assert audit() == second
    assert read == []
    with pytest.raises(ValueError, match=r"1 of 10 photos are damaged, first: '3\.jpg'"):
        audit("refuse")
    (root / "3.jpg").write_bytes(encoded(picture(3)))
    assert audit() == first
    kept.write_bytes(b"damaged")
    assert audit() == first
    assert len(read) == 10


def test_the_size_of_scenes_tells_their_audits_apart(tmp_path):
    for size in (32, 48, 48):
        scenes = data.scenes(size=size, num_train=2, num_database=1, num_query=1)
        dataset, _ = data.audit(scenes, kept=tmp_path / "audit.npz")
        assert (dataset.sizes == size).all()
