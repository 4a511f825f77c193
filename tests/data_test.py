import contextlib
import dataclasses
import io
import os
import pathlib
import pickle
import struct
import tarfile
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from mch_jax import data

COCO18 = pathlib.Path(os.environ.get("MCH_COCO18") or "../shared/data/coco18")


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rows(*names: str) -> list[list[str]]:
    """Table rows: photo i has the labels of i's two lowest bits."""
    return [[name, str(i & 1), str(i >> 1 & 1)] for i, name in enumerate(names, 1)]


NAMES = [f"{i}.jpg" for i in range(10)]
SPLITS = ["query"] * 2 + ["train"] * 5 + ["database"] * 3


def write_photos(root: pathlib.Path, names=NAMES) -> None:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture(i)))


def write_table(root: pathlib.Path, table, header=("file", "split", "cat", "dog")) -> None:
    lines = [",".join(header), *(",".join(row) for row in table)]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """Ten photos with labels.csv."""
    write_photos(tmp_path)
    table = [[r[0], s, *r[1:]] for r, s in zip(rows(*NAMES), SPLITS, strict=True)]
    write_table(tmp_path, table)
    return tmp_path


@pytest.fixture
def scenes() -> data.Dataset:
    return data.scenes(size=32, num_train=20, num_database=7, num_query=5)


# ---- decoding ------------------------------------------------------------------------------------


def test_exif_orientation_turns_the_photo_upright():
    image = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    image.paste((255, 0, 0), (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned: show it a quarter clockwise.
    pixels = data.decode(encoded(image, quality=95, exif=exif))
    assert pixels.shape == (40, 20, 3)
    assert pixels[:8, :, 0].min() > 200
    assert pixels[12:, :, 0].max() < 50


def test_cmyk_becomes_rgb():
    pixels = data.decode(encoded(Image.new("CMYK", (8, 6), (0, 255, 255, 0)), quality=95))
    assert pixels.shape == (6, 8, 3)
    np.testing.assert_allclose(pixels[3, 4], [255, 0, 0], atol=6)


def test_sixteen_bits_keep_the_upper_eight():
    grey = np.array([[0, 0x1234], [0x80FF, 0xFFFF]], np.uint16)
    pixels = data.decode(encoded(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(pixels[..., 0], [[0, 0x12], [0x80, 0xFF]])
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 255, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 2, 4))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 255, 9, 9, 9])
    palette.paste(1, (2, 0, 4, 4))
    for file in (encoded(clear, "PNG"), encoded(palette, "PNG", transparency=1)):
        pixels = data.decode(file)
        np.testing.assert_array_equal(pixels[0, [0, 3]], [[0, 0, 255], [255, 255, 255]])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(mode):
    pixels = data.decode(encoded(picture(0).convert(mode), "PNG"))
    assert pixels.shape == (30, 40, 3)
    assert pixels.dtype == np.uint8


def test_too_many_pixels_are_refused_before_decoding():
    """A PNG of some bytes that claims 9,000 x 9,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    for side in (9_000, 60_000):
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(
            b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        )
        bomb += chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
        with pytest.raises(ValueError, match="'bomb.png' does not decode: .*pixels"):
            data.decode(bomb, "bomb.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged TIFF tags.
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_broken_files_raise_value_error_only(kind):
    whole = encoded(picture(3), kind)
    rng = np.random.default_rng(0)
    for cut in (0, 1, 10, len(whole) // 4, len(whole) // 2):
        with pytest.raises(ValueError, match="'a photo' does not decode"):
            data.decode(whole[:cut], "a photo")
    for _ in range(40):
        scrambled = np.frombuffer(whole, np.uint8).copy()
        scrambled[rng.integers(len(whole), size=6)] = rng.integers(256, size=6)
        # Some bytes hardly matter: then it decodes, and no other error than ours may come.
        with contextlib.suppress(ValueError):
            assert data.decode(scrambled.tobytes()).dtype == np.uint8


# ---- folder --------------------------------------------------------------------------------------


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


def test_table_passes_over_further_columns(tmp_path):
    write_photos(tmp_path, ["a b.jpg", "sub/c.jpg"])
    header = ("file", "split", "cat", "width", "height", "caption")
    table = [["a b.jpg", "query", "1", "40", "30", '"a cat, and\nmore"'],
             ["sub/c.jpg", "train", "0", "40", "30", ""]]  # fmt: skip
    write_table(tmp_path, table, header)
    dataset, _ = data.audit(data.folder(tmp_path))
    assert dataset.classes == ("cat",)
    assert dataset.ids.tolist() == ["a b.jpg", "sub/c.jpg"]


def test_table_without_splits_draws_them_from_the_seed(tmp_path):
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


def write_lists(root: pathlib.Path, prefix: str = "", **changed: list[str]) -> None:
    lines = [f"{prefix}{name} {first} {second}" for name, first, second in rows(*NAMES)]
    lists = {"query": lines[:2], "database": lines[2:], "train": lines[2:7]} | changed
    for name, content in lists.items():
        (root / f"{name}.txt").write_text("\n".join(content) + "\n")


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
        (["2.jpg 0 1"], "gives '2.jpg' labels of another kind"),
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


def test_folder_without_labels_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="neither labels.csv nor all of .*query.txt is missing"):
        data.load("folder", tmp_path)
    with pytest.raises(ValueError, match="expected an existing folder"):
        data.load("folder", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="root is 'None'"):
        data.load("folder")


def test_load_names_the_choices():
    with pytest.raises(
        ValueError, match="'imagenet' is unknown.*scenes, coco18, coco, nuswide, mirflickr, folder"
    ):
        data.load("imagenet")
    with pytest.raises(ValueError, match="no setting 'sise', expected one of seed, size"):
        data.load("scenes", sise=64)


# ---- audit ---------------------------------------------------------------------------------------


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
        ({"ids": np.array(["a"] * 2 + NAMES[2:])}, "1 photos are listed twice, 'a' first"),
        ({"classes": ("cat",)}, r"shape \(10, 2\), expected \(10, 1\)"),
        ({"labels": np.full((10, 2), 2, np.uint8)}, "label 2, expected 0 or 1"),
    ],
)
def test_audit_catches(root, change, message):
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
    """A training photo is cut off, a query is text, a database photo is missing."""
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


def test_on_damaged_names_its_choices(scenes):
    with pytest.raises(ValueError, match="on_damaged is 'ignore', expected refuse or skip"):
        data.audit(scenes, on_damaged="ignore")


# ---- batches -------------------------------------------------------------------------------------


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


def test_an_epoch_shows_each_row_once_and_the_next_in_another_order(scenes):
    batches = [b["row"].tolist() for b in take(data.batches(scenes, scenes.train, 32, 5), 8)]
    first, second = sum(batches[:4], []), sum(batches[4:], [])
    assert sorted(first) == sorted(second) == scenes.train.tolist()
    assert first != second != scenes.train.tolist()


@pytest.mark.parametrize("start", [1, 3, 4, 7])
def test_resumed_is_uninterrupted(scenes, start):
    """With 20 rows and batches of 6, batch 3 opens the second epoch."""
    whole = take(data.batches(scenes, scenes.train, 32, 6, seed=5), 9)
    rest = take(data.batches(scenes, scenes.train, 32, 6, seed=5, start_step=start), 9 - start)
    for expected, batch in zip(whole[start:], rest, strict=True):
        for key in expected:
            np.testing.assert_array_equal(batch[key], expected[key])


def test_seeds_give_unlike_orders(scenes):
    """Neither the same epoch nor a neighbouring one repeats under another seed."""
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


def test_epoch_keeps_the_order_and_pads_nothing(scenes):
    rows = scenes.database[::-1]
    got = list(data.epoch(scenes, rows, 32, 8))
    assert [len(b["row"]) for b in got] == [8, 8, 8, 3]
    np.testing.assert_array_equal(np.concatenate([b["row"] for b in got]), rows)
    later = list(data.epoch(scenes, rows, 32, 8, start_step=2))
    np.testing.assert_array_equal(np.concatenate([b["row"] for b in later]), rows[16:])
    assert list(data.epoch(scenes, rows, 32, 8, start_step=4)) == []
    assert list(data.epoch(scenes, rows[:0], 32, 8)) == []


def test_too_few_rows_are_refused_at_once(scenes):
    with pytest.raises(ValueError, match="batch_size is 21, but scenes has 20 rows"):
        data.batches(scenes, scenes.train, 32, 21)


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
    assert len(read) == 10
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


def test_a_photo_damaged_after_the_audit_is_named(root):
    dataset = data.load("folder", root)
    (root / "4.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="'4.jpg' does not decode"):
        list(data.epoch(dataset, dataset.database, 16, 2))


def test_closing_ends_the_threads(scenes):
    before = set(threading.enumerate())
    take(data.batches(scenes, scenes.train, 32, 4), 2)
    started = [t for t in set(threading.enumerate()) - before if "grain" in t.name]
    for thread in started:
        thread.join(5)
    assert not any(thread.is_alive() for thread in started)


# ---- coco18 --------------------------------------------------------------------------------------


@pytest.fixture
def pack(root) -> pathlib.Path:
    """The ten photos as a pack like coco18."""
    with tarfile.open(root / "images.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in NAMES:
            tar.add(root / name, name)
            (root / name).unlink()
    return root


def test_photos_come_straight_from_the_tar(pack, monkeypatch):
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


def test_no_pack_and_no_tar(pack, tmp_path_factory):
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
