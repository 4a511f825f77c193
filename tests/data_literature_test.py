import pickle
import shutil
import zipfile
from typing import Any

import numpy as np
import published
import pytest

from mch_jax import data
from mch_jax.data import archives, records, splits

NAMES = ("coco", "nuswide", "mirflickr")


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Folders with small archives of each data set. Tests must not change them."""
    made = {}
    for name in NAMES:
        made[name] = tmp_path_factory.mktemp(name)
        published.WRITERS[name](made[name])
    return made


@pytest.fixture
def coco(roots, tmp_path):
    """A copy of the folder of coco that a test may change."""
    shutil.copytree(roots["coco"], tmp_path / "coco")
    return tmp_path / "coco"


def load(name, root, **settings):
    return data.load(name, root, seed=7, **{**published.SETTINGS[name], **settings})


def same(a: data.Dataset, b: data.Dataset) -> bool:
    fields = ("ids", "labels", "query", "database", "train")
    return a.classes == b.classes and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in fields
    )


# ---- contents -----------------------------------------------------------------------------


def test_coco_has_each_labelled_photo_with_its_categories(coco):
    truth = {k: v for k, v in published.write_coco(coco).items() if v}
    dataset, counts = data.audit(load("coco", coco))
    assert dataset.classes == tuple(published.ALPHABETICAL)
    assert set(dataset.ids) == set(truth)
    for row, name in enumerate(dataset.ids):
        assert {c for c, has in zip(dataset.classes, dataset.labels[row], strict=True) if has} == (
            truth[name]
        )
    assert counts["n"] == 30
    assert counts["unlabelled"] == 0
    assert [counts[key] for key in ("queries", "database", "train")] == [5, 25, 16]
    assert "2 photos without a label are left out" in counts["notes"]
    row = int(np.flatnonzero(dataset.ids == "val2014/COCO_val2014_000000000103.jpg")[0])
    np.testing.assert_array_equal(dataset.read(row), data.decode(published.photo(103)))


def test_nuswide_takes_the_most_frequent_concepts_first(roots):
    dataset, counts = data.audit(load("nuswide", roots["nuswide"]))
    assert dataset.classes == ("sky", "animal", "beach", "clouds")  # zebra is rare
    assert len(dataset.query) == 4
    assert len(dataset.train) == 16
    assert counts["n"] == 30  # photos 0 and 16 have none of the four
    row = int(np.flatnonzero(dataset.ids == "actor/0006_706.jpg")[0])
    assert dataset.labels[row].tolist() == [1, 0, 1, 1]
    np.testing.assert_array_equal(dataset.read(row), data.decode(published.photo(6)))
    everything = load("nuswide", roots["nuswide"], num_concepts=5, train_per_class=1)
    assert everything.classes[-1] == "zebra"


def test_mirflickr_has_38_labels_whose_strict_ones_change_no_similarity(roots):
    dataset, counts = data.audit(load("mirflickr", roots["mirflickr"]))
    assert counts["classes"] == 38
    assert dataset.classes[:4] == ("animals", "baby", "baby_r1", "bird")
    row = int(np.flatnonzero(dataset.ids == "im6.jpg")[0])  # bits 1 and 2: baby and bird
    assert dataset.labels[row, 1] == dataset.labels[row, 3] == 1
    np.testing.assert_array_equal(dataset.read(row), data.decode(published.photo(6)))
    plain = [not name.endswith("_r1") for name in dataset.classes]
    assert sum(plain) == 24
    whole, without = (x @ x.T > 0 for x in (dataset.labels, dataset.labels[:, plain]))
    np.testing.assert_array_equal(whole, without)


@pytest.mark.parametrize("name", NAMES)
def test_unpacked_archives_give_the_same_data_set(name, roots, tmp_path):
    for path in roots[name].iterdir():
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(tmp_path)
        else:
            shutil.copytree(path, tmp_path / path.name)
    packed, unpacked = load(name, roots[name]), load(name, tmp_path)
    assert same(packed, unpacked)
    reader = pickle.loads(pickle.dumps(packed.read))
    np.testing.assert_array_equal(reader(3), unpacked.read(3))


@pytest.mark.parametrize("name", NAMES)
def test_splits_depend_on_split_seed_and_do_not_overlap(name, roots):
    first, again = load(name, roots[name]), load(name, roots[name])
    other = load(name, roots[name], split_seed=1)
    assert same(first, again)
    assert not np.array_equal(first.train, other.train)
    assert not np.intersect1d(first.query, first.database).size
    assert np.isin(first.train, first.database).all()
    assert len(first.query) + len(first.database) == len(first.ids)


def test_per_class_split_counts_each_photo_for_one_class():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 5)) < [0.6, 0.3, 0.2, 0.1, 0.1]).astype(np.uint8)
    rows = splits.per_class_split(labels, 3, 4, 9)
    assert [len(rows[name]) for name in ("query", "train", "database")] == [20, 45, 280]
    assert (labels[rows["query"]].sum(0) >= 4).all()
    with pytest.raises(ValueError, match="query_per_class is 200, but . classes have fewer"):
        splits.per_class_split(labels, 3, 200, 9)


def test_unlabelled_and_missing_photos(coco):
    assert len(load("coco", coco, keep_unlabelled=True).ids) == 32
    (coco / "val2014.zip").unlink()
    with pytest.raises(ValueError, match="16 of 32 photos are not in .*set skip_missing"):
        load("coco", coco)
    dataset = load("coco", coco, skip_missing=True, num_train=5)
    assert len(dataset.ids) == 15
    assert "16 photos are missing and left out" in dataset.notes


# ---- lists ---------------------------------------------------------------------------------------


def write_lists(root, dataset, order=None, prefix="", **parts):
    """Writes lists in the format of the literature: a path, then the labels."""
    folder = root / "lists"
    folder.mkdir(exist_ok=True)
    for name, rows in parts.items():
        labels = dataset.labels[rows] if order is None else dataset.labels[rows][:, order]
        lines = [
            f"{prefix}{dataset.ids[row]} {' '.join(map(str, values))}"
            for row, values in zip(rows, labels, strict=True)
        ]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def test_lists_define_the_splits_and_other_photos_are_the_database(coco):
    dataset = load("coco", coco)
    write_lists(coco, dataset, prefix="/home/someone/coco/", test=[3, 1], train=[0, 7, 9])
    listed, counts = data.audit(load("coco", coco))
    assert listed.query.tolist() == [3, 1]
    assert listed.train.tolist() == [0, 7, 9]
    assert counts["database"] == 28
    assert counts["notes"][-1] == "splits are those of the lists in lists"


def test_lists_can_have_numbered_parts(coco):
    dataset = load("coco", coco)
    write_lists(
        coco, dataset, test0=[3], test1=[1], train=[0, 7], database0=[0, 2], database1=[7, 8]
    )
    listed, _ = data.audit(load("coco", coco))
    assert listed.query.tolist() == [3, 1]
    assert listed.database.tolist() == [0, 2, 7, 8]


def test_overlapping_lists_are_refused(coco):
    dataset = load("coco", coco)
    write_lists(coco, dataset, test=[3, 1], train=[0, 7], database=[1, 2, 3, 4])
    with pytest.raises(ValueError, match="all 2 queries, as HashNet's published list .* Remove"):
        load("coco", coco)
    write_lists(coco, dataset, test=[3, 1], train=[0, 3])
    (coco / "lists" / "database.txt").unlink()
    with pytest.raises(ValueError, match="1 photos in both the queries and the training set"):
        load("coco", coco)


def test_columns_in_another_order_are_detected(coco):
    dataset = load("coco", coco)
    by_id = [published.ALPHABETICAL.index(name) for name in published.CATEGORIES.values()]
    rows: Any = {"test": np.arange(0, 30, 2), "train": np.arange(1, 30, 2)}
    write_lists(coco, dataset, order=by_id, **rows)
    listed = load("coco", coco)
    assert "columns in another order; expected 4 columns, COCO's categories in alpha" in str(
        listed.notes
    )
    np.testing.assert_array_equal(listed.labels, dataset.labels)
    write_lists(coco, dataset, order=[0, 0, 1, 2], **rows)
    with pytest.raises(ValueError, match="differ from the annotations on .* alphabetical"):
        load("coco", coco)


def test_a_few_different_labels_cause_a_remark(coco):
    dataset = load("coco", coco)
    write_lists(coco, dataset, test=np.arange(3), train=np.arange(3, 30))
    path = coco / "lists" / "train.txt"
    lines = path.read_text().splitlines()
    lines[0] = lines[0][:-1] + ("1" if lines[0].endswith("0") else "0")
    path.write_text("\n".join(lines))
    assert "1 of 30 lines of the lists have other labels" in str(load("coco", coco).notes)


def test_lists_with_another_number_of_concepts_are_refused(roots, tmp_path):
    root = tmp_path / "nuswide"
    shutil.copytree(roots["nuswide"], root)
    dataset = load("nuswide", root, num_concepts=5, train_per_class=1)
    write_lists(root, dataset, test=[3, 1], train=[0, 7])
    with pytest.raises(ValueError, match="has 5 labels per line, expected 4; .* set num_concepts"):
        load("nuswide", root)
    assert load("nuswide", root, num_concepts=5).query.tolist() == [3, 1]


def test_nuswide_photos_are_identified_by_their_number_at_flickr(roots, tmp_path):
    root = tmp_path / "nuswide"
    shutil.copytree(roots["nuswide"], root)
    dataset = load("nuswide", root)
    (root / "lists").mkdir()
    for name, row in (("test", 4), ("train", 5)):
        number = str(dataset.ids[row]).partition("_")[2].removesuffix(".jpg")
        labels = " ".join(map(str, dataset.labels[row]))
        (root / "lists" / f"{name}.txt").write_text(f"images/9_{number}_2a_m.jpg {labels}\n")
    listed = load("nuswide", root)
    assert [listed.query.tolist(), listed.train.tolist()] == [[4], [5]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "train2014/COCO_train2014_000000000000.jpg 0 0 0 1",
            "1 photos that the data set does not",
        ),
        ("train2014/new.jpg 0 0 0 1", "'new.jpg' first"),
        ("../../etc/passwd 0 0 0 1", "leads outside the data folder"),
        ("train2014/COCO_train2014_000000000001.jpg 0 0 0", "has 3 labels per line, expected 4"),
    ],
)
def test_list_errors(coco, line, message):
    (coco / "lists").mkdir()
    (coco / "lists" / "test.txt").write_text(line + "\n")
    (coco / "lists" / "train.txt").write_text("train2014/COCO_train2014_000000000002.jpg 1 0 0 0\n")
    with pytest.raises(ValueError, match=message):
        load("coco", coco)


def test_a_missing_list_is_refused(coco):
    write_lists(coco, load("coco", coco), test=[1])
    with pytest.raises(ValueError, match="has no train.txt"):
        load("coco", coco)


# ---- archives ------------------------------------------------------------------------------------


def test_no_name_leads_outside_the_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    published.write_zip(
        root / "a.zip", {"../secret.txt": b"zip", "/etc/x.txt": b"x", "a.txt": b"a"}
    )
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(root / "a.zip", "a") as archive:
        archive.writestr(link, "../secret.txt")
    files = archives.Files(root, ["a.zip"])
    assert files.read("a.txt") == b"a"
    assert files.read("secret.txt") is None
    assert files.read("link.txt") is None
    for name in ("../secret.txt", "/etc/hostname", "a/../../secret.txt"):
        with pytest.raises(ValueError, match="leads outside the data folder"):
            files.find(name)


def test_stored_and_deflated_members(tmp_path):
    content = {"a/x": bytes(range(256)) * 9, "a/empty": b"", "y": b"1"}
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        published.write_zip(tmp_path / "a.zip", content, compression=compression)
        files = archives.Files(tmp_path, ["a.zip"])
        for name, expected in content.items():
            assert files.read(name) == expected
        assert files.read("x") == content["a/x"]  # one folder further down


@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_truncated_zips_are_refused(coco, keep):
    path = coco / "train2014.zip"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ValueError, match="train2014.zip' is not a whole zip"):
        load("coco", coco)


def test_overwritten_members_are_damaged_photos(coco):
    path = coco / "train2014.zip"
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xd8")
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="1 of 32 photos are damaged"):
        data.audit(load("coco", coco, keep_unlabelled=True))


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("coco", "annotations_trainval2014.zip", None, "has no annotations/instances_train2014"),
        ("coco", "annotations/instances_train2014.json", "[]", "is not an annotation of instances"),
        ("coco", "annotations/instances_train2014.json", "{", "is not an annotation of instances"),
        ("nuswide", "ImageList.zip", None, "has no ImageList/Imagelist.txt"),
        ("nuswide", "Groundtruth/AllLabels/Labels_sky.txt", "1\n0\n", "has 2 entries, expected 32"),
        ("mirflickr", "animals.txt", "1\n33\n", "is wrong, expected photo numbers from 1 to 32"),
    ],
)
def test_annotation_errors(roots, tmp_path, name, file, content, message):
    root = tmp_path / name
    shutil.copytree(roots[name], root)
    if content is None:
        (root / file).unlink()
    else:
        for path in ("annotations_trainval2014", "NUS-WIDE", "mirflickr25k_annotations_v080"):
            if (root / f"{path}.zip").exists():
                with zipfile.ZipFile(root / f"{path}.zip") as archive:
                    archive.extractall(root)
                (root / f"{path}.zip").unlink()
        (root / file).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load(name, root)
    assert "\n" not in str(error.value)


def test_a_missing_root_and_wrong_numbers_are_refused(roots, tmp_path):
    with pytest.raises(ValueError, match="root is 'None', expected the folder with train2014.zip"):
        data.load("coco")
    with pytest.raises(ValueError, match="num_query is 20 and num_train 16, .* at most 30"):
        load("coco", roots["coco"], num_query=20)
    with pytest.raises(ValueError, match="num_concepts is 6, expected 1 to 5"):
        load("nuswide", roots["nuswide"], num_concepts=6)


# ---- records -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(roots, tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return {
        name: records.prepare(name, roots[name], folder, 48, **published.SETTINGS[name])
        for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_records_contain_the_data_set_in_order(name, roots, prepared):
    straight, _ = data.audit(load(name, roots[name]))
    dataset, counts = data.audit(data.load(name, prepared[name]))
    assert counts["n"] == len(straight.ids)
    assert dataset.classes == straight.classes
    for split in ("query", "train", "database"):
        ours, theirs = getattr(dataset, split), getattr(straight, split)
        assert sorted(dataset.ids[ours]) == sorted(straight.ids[theirs])
    assert (dataset.ids[dataset.query] == straight.ids[straight.query]).all()
    row_of = {str(name): row for row, name in enumerate(straight.ids)}
    for row, photo_name in enumerate(dataset.ids):
        theirs = row_of[str(photo_name)]
        np.testing.assert_array_equal(dataset.labels[row], straight.labels[theirs])
        np.testing.assert_array_equal(dataset.sizes[row], [40, 30])  # as published
    small = next(data.epoch(straight, np.array([row_of[str(dataset.ids[2])]]), 48, 1))["image"][0]
    assert dataset.read(2).shape == (48, 48, 3)
    assert np.abs(dataset.read(2).astype(int) - small).mean() < 3  # compressed as JPEG once more


def test_records_are_made_once_for_each_setting(roots, prepared):
    again = records.prepare("coco", roots["coco"], prepared["coco"].parents[2], 48,
                            **published.SETTINGS["coco"])  # fmt: skip
    assert again == prepared["coco"]
    with pytest.raises(ValueError, match="whose settings were fixed .* remove 'num_query'"):
        data.load("coco", again, num_query=3)
    with pytest.raises(ValueError, match="does not have all records of this data set"):
        data.load("nuswide", again)
    assert records.config(split_seed=1).name != records.config(split_seed=2).name
    with pytest.raises(ValueError, match="size is 8"):
        records.config(8)
    with pytest.raises(ValueError, match="no', expected the folder of its archives"):
        records.prepare("coco", roots["coco"] / "no", roots["coco"])


def test_incomplete_archives_are_refused_before_records_are_made(coco, tmp_path):
    (coco / "val2014.zip").unlink()
    with pytest.raises(ValueError, match="16 of 32 photos are not in") as error:
        records.prepare("coco", coco, tmp_path / "records", 48, **published.SETTINGS["coco"])
    assert len(str(error.value)) < 400
    assert not list((tmp_path / "records").rglob("*.array_record*"))


def test_damaged_records_are_refused(prepared, tmp_path):
    shutil.copytree(prepared["coco"], tmp_path / "1.0.0")
    (tmp_path / "1.0.0" / "metadata.json").unlink()
    with pytest.raises(ValueError, match="do not open .*make them again"):
        data.load("coco", tmp_path / "1.0.0")
