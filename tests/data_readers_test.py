import os
import pathlib
import pickle
import tarfile

import labelled_folder
import numpy as np
import pytest
from labelled_folder import NAMES, encoded, picture, rows, write_lists, write_photos, write_table

from mch_jax import data
from mch_jax.data import splits

COCO18 = pathlib.Path(os.environ.get("MCH_COCO18") or "../shared/data/coco18")


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    return labelled_folder.make(tmp_path)


def test_table(root):
    dataset = data.load("folder", root)
    assert dataset.classes == ("cat", "dog")
    assert dataset.ids.tolist() == NAMES
    np.testing.assert_array_equal(dataset.labels[:4], [[1, 0], [0, 1], [1, 1], [0, 0]])
    np.testing.assert_array_equal(dataset.query, [0, 1])
    np.testing.assert_array_equal(dataset.train, np.arange(2, 7))
    np.testing.assert_array_equal(dataset.database, np.arange(2, 10))
    np.testing.assert_array_equal(dataset.read(3), data.decode((root / "3.jpg").read_bytes()))
    dataset, counts = data.audit(dataset)
    assert (dataset.sizes == [40, 30]).all()
    assert counts["per_class"] == {"cat": 5, "dog": 5}


def test_other_columns_of_the_table_are_ignored(tmp_path):
    write_photos(tmp_path, ["a b.jpg", "sub/c.jpg"])
    header = ("file", "split", "cat", "width", "height", "caption")
    table = [["a b.jpg", "query", "1", "40", "30", '"a cat, and\nmore"'],
             ["sub/c.jpg", "train", "0", "40", "30", ""]]  # fmt: skip
    write_table(tmp_path, table, header)
    dataset, _ = data.audit(data.folder(tmp_path))
    assert dataset.classes == ("cat",)
    assert dataset.ids.tolist() == ["a b.jpg", "sub/c.jpg"]


def test_splits_are_drawn_if_the_table_has_none(tmp_path):
    write_photos(tmp_path)
    write_table(tmp_path, rows(*NAMES), ("file", "cat", "dog"))
    first, again, other = (data.load("folder", tmp_path, seed=seed) for seed in (3, 3, 4))
    assert [len(first.query), len(first.database), len(first.train)] == [1, 9, 4]
    np.testing.assert_array_equal(first.train, again.train)
    assert not np.array_equal(first.train, other.train)
    data.audit(first)
    half = data.load("folder", tmp_path, query_fraction=0.5, train_fraction=1.0)
    assert [len(half.query), len(half.database), len(half.train)] == [5, 5, 5]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "is empty; expected a header"),
        ("name,cat\na.jpg,1\n", "expected a header file,split,CLASS"),
        ("file,split\na.jpg,train\n", "expected a header file,split,CLASS"),
        ("file,cat,cat\na.jpg,1,1\n", "with different names"),
        ("file,split,cat\n", "lists no photo"),
        ("file,split,cat\na.jpg,train,1\nb.jpg,query\n", "line 3 has 2 columns, expected 3"),
        ("file,split,cat\na.jpg,train,1,0\n", "line 2 has 4 columns, expected 3"),
        ("file,split,cat\na.jpg,train,2\n", "line 2: label '2', expected 0 or 1"),
        ("file,split,cat\na.jpg,test,1\n", "split 'test', expected one of query, database, train"),
        ("file,split,cat\n../a.jpg,train,1\n", "'../a.jpg' leads outside the data folder"),
        ("file,split,cat\n/etc/a.jpg,train,1\n", "'/etc/a.jpg' leads outside the data folder"),
    ],
)
def test_table_errors(tmp_path, table, message):
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(ValueError, match=message) as error:
        data.load("folder", tmp_path)
    assert "\n" not in str(error.value)


def test_table_that_is_not_utf8(tmp_path):
    (tmp_path / "labels.csv").write_bytes("file,Käse\na.jpg,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="save it as UTF-8"):
        data.load("folder", tmp_path)


@pytest.mark.parametrize("prefix", ["", "./", "/home/someone/data/"])
def test_lists(tmp_path, prefix):
    write_photos(tmp_path)
    write_lists(tmp_path, prefix)
    dataset, counts = data.audit(data.load("folder", tmp_path))
    assert dataset.ids.tolist() == NAMES
    assert dataset.classes == ("class 0", "class 1")
    np.testing.assert_array_equal(dataset.labels[:4], [[1, 0], [0, 1], [1, 1], [0, 0]])
    np.testing.assert_array_equal(dataset.train, np.arange(2, 7))
    assert (counts["queries"], counts["database"], counts["train"]) == (2, 8, 5)


def test_lists_with_folders_classes_and_spaces(tmp_path):
    names = ["train2014/a b.jpg", "train2014/c.jpg", "val2014/c.jpg"]
    write_photos(tmp_path, names)
    for file, name in zip(("test", "database", "train"), names, strict=True):
        (tmp_path / f"{file}.txt").write_text(f"/home/someone/coco/{name} 1 0\n")
    absolute = f"{tmp_path}/{names[2]}"
    (tmp_path / "database.txt").write_text(f"{names[1]} 0 1\n{absolute} 1 0\n")
    (tmp_path / "classes.txt").write_text("cat\nguide dog\n")
    dataset, _ = data.audit(data.load("folder", tmp_path))
    assert dataset.ids.tolist() == names
    assert dataset.classes == ("cat", "guide dog")
    assert dataset.labels.tolist() == [[1, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (["2.jpg 1 1", "3.jpg 0"], "line 2: '3.jpg 0', expected a path and 2 labels"),
        (["2.jpg 1 1", "3.jpg 0 0 0"], "line 2: '3.jpg 0 0 0', expected a path and 2 labels"),
        (["2.jpg 1 1", "3.jpg 0 2"], "line 2: label '2', expected 0 or 1"),
        (["2.jpg 1 1", "2.jpg 1 1"], "lists '2.jpg' twice"),
        (["2.jpg 0 1"], "gives '2.jpg' other labels"),
        (["../2.jpg 1 1"], "leads outside the data folder"),
        (["0 1 1"], "expected 'path l1 ... lN'"),
        (["2.jpg"], "expected 'path l1 ... lN'"),
        ([""], "lists no photo"),
        (["new.jpg 1"], "different numbers of labels"),
    ],
)
def test_list_errors(tmp_path, train, message):
    write_photos(tmp_path)
    write_lists(tmp_path, train=train)
    with pytest.raises(ValueError, match=message):
        data.load("folder", tmp_path)


def test_a_folder_without_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither labels.csv nor all of .*query.txt is missing"):
        data.load("folder", tmp_path)
    with pytest.raises(ValueError, match="expected an existing folder"):
        data.load("folder", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="root is 'None'"):
        data.load("folder")


def test_load_lists_the_choices():
    with pytest.raises(
        ValueError, match="'imagenet' is unknown.*scenes, coco18, coco, nuswide, mirflickr, folder"
    ):
        data.load("imagenet")
    with pytest.raises(ValueError, match="no setting 'sise', expected one of seed, size"):
        data.load("scenes", sise=64)


@pytest.fixture
def pack(root) -> pathlib.Path:
    """The ten photos in a tar, in the format of coco18."""
    with tarfile.open(root / "images.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in NAMES:
            tar.add(root / name, name)
            (root / name).unlink()
    return root


def test_photos_are_read_from_the_tar(pack, monkeypatch):
    monkeypatch.setenv("MCH_COCO18", str(pack))
    dataset, counts = data.audit(data.load("coco18"))
    assert (dataset.name, counts["n"], counts["train"]) == ("coco18", 10, 5)
    reader = pickle.loads(pickle.dumps(dataset.read))
    for row in (9, 0, 4):
        expected = data.decode(encoded(picture(row)))
        np.testing.assert_array_equal(dataset.read(row), expected)
        np.testing.assert_array_equal(reader(row), expected)


def test_a_pack_with_missing_photos_is_refused(pack):
    with (pack / "labels.csv").open("a") as file:
        file.write("extra.jpg,train,0,1\n")
    with pytest.raises(ValueError, match="1 photos of labels.csv are not in .*'extra.jpg' first"):
        data.load("coco18", pack)


def test_a_missing_pack_and_a_damaged_tar_are_refused(pack, tmp_path_factory):
    with pytest.raises(ValueError, match="MCH_COCO18"):
        data.load("coco18", tmp_path_factory.mktemp("empty"))
    (pack / "images.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match="not a whole, uncompressed tar"):
        data.load("coco18", pack)


@pytest.mark.coco18
@pytest.mark.skipif(
    not (COCO18 / "images.tar").is_file(), reason=f"the coco18 pack is not in {COCO18}"
)
def test_coco18_pack():
    dataset, counts = data.audit(data.load("coco18", COCO18))
    assert counts["n"] == 9600
    assert [counts[key] for key in ("queries", "database", "train")] == [1000, 8600, 3600]
    assert (counts["classes"], counts["unlabelled"], counts["damaged"]) == (18, 0, [])
    assert counts["per_class"]["person"] == 4989
    assert counts["relevant_share"] == pytest.approx(0.383, abs=0.001)
    assert dataset.sizes[:2].tolist() == [[190, 250], [240, 320]]
    assert dataset.read(0).shape == (250, 190, 3)


def test_hidden_classes_leave_the_training_set(tmp_path):
    rows = ["file,split,cat,dog", "a.jpg,train,1,0", "b.jpg,train,1,1", "c.jpg,database,0,1"]
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "d.jpg,query,0,1"]) + "\n")
    dataset = data.folder(tmp_path, hidden_classes=("dog",))
    assert dataset.ids[dataset.train].tolist() == ["a.jpg"]
    assert dataset.ids[dataset.database].tolist() == ["a.jpg", "b.jpg", "c.jpg"]
    assert dataset.labels.tolist() == data.folder(tmp_path).labels.tolist()
    with pytest.raises(ValueError, match="hidden_classes has 'cow', expected names among cat, dog"):
        data.folder(tmp_path, hidden_classes=("cow",))


def test_a_smaller_training_set_is_part_of_a_larger_one():
    rows = np.arange(0, 60, 2)
    small, large = splits.limited(rows, 10), splits.limited(rows, 20)
    assert len(small) == 10
    assert set(small) < set(large) < set(rows)
    assert (np.diff(large) > 0).all()
    np.testing.assert_array_equal(splits.limited(rows, 30), rows)
    for count in (0, 31):
        with pytest.raises(ValueError, match=f"num_train is {count}, expected from 1 to 30"):
            splits.limited(rows, count)
