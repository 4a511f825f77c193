"""Files that nobody would write: each reader gives a result or one ValueError, and nothing else.

A minute of it is part of every test run. For longer, give the seconds of each test:

    FUZZ_SECONDS=100 python -m pytest -s tests/fuzz_test.py
"""

import functools
import io
import itertools
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
import warnings
import zipfile

import numpy as np
import pytest
from damage import damage, damaged, read_or_refuse
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image

from mch_jax import data, index
from mch_jax.data import archives, label_files, photos, split_lists
from mch_jax.files import codes_file, load_arrays, read_arrays
from mch_jax.index import storage

SECONDS = float(os.environ.get("FUZZ_SECONDS", 0))


def fuzz(examples, **strategies):
    """Makes a test of a function of one example: some in a short run, as many as fit in a long."""

    def decorate(function):
        def test():
            start, number, count = time.monotonic(), 0, itertools.count()

            @functools.wraps(function)
            def counted(**example):
                next(count)
                function(**example)

            while True:
                given_test = settings(
                    max_examples=max(examples, 200 if SECONDS else 0),
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
                )(seed(number)(given(**strategies)(counted)))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    given_test()
                number += 1
                if time.monotonic() - start >= SECONDS:
                    sys.stdout.write(f"{function.__name__}: {next(count):,} files\n")
                    return

        test.__name__ = function.__name__
        return test

    return decorate


@pytest.fixture(scope="module", autouse=True)
def scratch():
    """A folder in memory where there is one."""
    global FOLDER
    memory = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        FOLDER = pathlib.Path(folder)
        yield


FOLDER = pathlib.Path()

# Codes files: arrays that do not fit, headers that lie, bytes that changed


def sound_arrays():
    rng = np.random.default_rng(0)
    return {
        "codes": rng.integers(0, 256, (6, 2), np.uint8) & np.array([255, 15], np.uint8),
        "item": np.array([0, 0, 1, 2, 2, 2]),
        "ids": np.array(["a.jpg", "b.jpg", "c.jpg"]),
        "keep_prob": np.ones(6, np.float32),
        "box": np.zeros((6, 4), np.int32),
        "labels": np.eye(3, dtype=np.uint8),
        "num_bits": np.int64(12),
        "format": np.str_(codes_file.FORMAT),
    }


any_array = st.one_of(
    st_numpy.arrays(
        st.one_of(st_numpy.scalar_dtypes(), st_numpy.unicode_string_dtypes(max_len=3)),
        st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
    ),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st_numpy.arrays(np.int64, st.integers(0, 8), elements=st.integers(-2, 4)),
    st_numpy.arrays(np.uint8, st.tuples(st.integers(0, 8), st.integers(0, 3))),
)
header = st.tuples(
    st.sampled_from(
        ["<f4", "|u1", "<i8", "<U5", "|O", "|V0", "<U0", "O", "x", "<c16", "|S99999999"]
    ),
    st.booleans(),
    st.lists(st.sampled_from([0, 1, 2, 6, -1, 2**31, 2**62, 10**18, 2**64]), max_size=4),
)


def raw_array(descr, fortran_order, shape, content=b"\0" * 40):
    text = repr({"descr": descr, "fortran_order": fortran_order, "shape": tuple(shape)})
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode() + content


def read_codes(path):
    file = codes_file.load(path)
    if file.num_bits <= index.MAX_LONG_BITS:
        made = index.BucketIndex.build(file.codes, file.item, file.num_bits)
        hits = made.search(file.codes[:2], 3)
        assert ((hits.item >= -1) & (hits.item < len(file.ids))).all()
        made.within(file.codes[:2], 1)


@fuzz(
    60,
    changes=st.dictionaries(
        st.sampled_from([*sound_arrays(), "more"]), st.none() | any_array | header, max_size=3
    ),
    change=st.none() | damage,
)
def test_codes_files(changes, change):
    arrays = sound_arrays() | changes
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            if isinstance(array, tuple):
                archive.writestr(f"{name}.npy", raw_array(*array))
            elif array is not None:
                content = io.BytesIO()
                np.save(content, array, allow_pickle=False)
                archive.writestr(f"{name}.npy", content.getvalue())
    written = stream.getvalue()
    path = FOLDER / "codes.npz"
    path.write_bytes(damaged(written, *change) if change else written)
    read_or_refuse(path, read_codes)
    for reader in (load_arrays, read_arrays):
        read_or_refuse(path, reader)


# Lists and tables

word = st.one_of(
    st.sampled_from(
        ["a.jpg", "b.jpg", "sub/c.jpg", "../a.jpg", "/etc/a.jpg", "file", "split", "cat", "dog"]
        + ["train", "query", "database", "width", "caption", "0", "1", "2", "", " ", "\t", '"']
        + ["\x00", "\x1b[2J", "\u202e", "é", "C:\\a.jpg", "//a.jpg", ".", "..", "a" * 300, "1" * 50]
    ),
    st.text(max_size=8),
)
table = st.lists(st.lists(word, max_size=6).map(",".join), max_size=8)
listing = st.lists(st.lists(word, max_size=5).map(" ".join), max_size=6)
ending = st.sampled_from(["\n", "\r\n", "\r", "\n\n"])


def text_bytes(lines, end, change):
    content = end.join(lines).encode("utf-8", "surrogatepass")
    return damaged(content, *change) if change and content else content


def emptied():
    folder = FOLDER / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def read_folder(folder):
    dataset = data.load("folder", folder)
    count = len(dataset.ids)
    assert dataset.labels.shape == (count, len(dataset.classes))
    for rows in (dataset.query, dataset.database, dataset.train):
        assert ((rows >= 0) & (rows < count)).all()
    for name in dataset.ids:
        inside = os.path.normpath(folder / str(name))
        assert inside.startswith(f"{folder}{os.sep}"), name
        assert "\x00" not in str(name)


@fuzz(
    80,
    lines=table,
    sound=st.booleans(),
    end=ending,
    change=st.none() | damage,
)
def test_labels_csv(lines, sound, end, change):
    if sound:
        head = ["file,split,cat,dog", "a.jpg,train,1,0", "b.jpg,query,0,1", "c.jpg,database,1,1"]
        lines = head + lines[:2]
    folder = emptied()
    (folder / "labels.csv").write_bytes(text_bytes(lines, end, change))
    read_or_refuse(folder, read_folder)
    read_or_refuse(folder / "labels.csv", label_files.read_table)


@fuzz(
    80,
    query=listing,
    database=listing,
    train=listing,
    sound=st.sampled_from(["", "query", "database", "train"]),
    end=ending,
    change=st.none() | damage,
)
def test_lists(query, database, train, sound, end, change):
    found = {"query": query, "database": database, "train": train}
    good = {
        "query": ["c.jpg 0 1"],
        "database": ["a.jpg 1 0", "b.jpg 1 1"],
        "train": ["a.jpg 1 0", "b.jpg 1 1"],
    }
    folder = emptied()
    for name, lines in found.items():
        lines = good[name] + lines[:1] if sound and name != sound else lines
        (folder / f"{name}.txt").write_bytes(text_bytes(lines, end, change))
    read_or_refuse(folder, read_folder)
    names, labels = ["a.jpg", "b.jpg", "c.jpg"], np.array([[1, 0], [1, 1], [0, 1]], np.uint8)
    read_or_refuse(
        folder, lambda path: split_lists.read_splits(path, names, labels, os.path.basename, "hint")
    )


# Indexes: a changed meta file, with or without a matching checksum, and changed arrays

json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.just(10**30) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def saved_index():
    folder = FOLDER / "sound"
    if not folder.exists():
        rng = np.random.default_rng(1)
        made = index.BucketIndex.build(
            rng.integers(0, 256, (40, 2), np.uint8), np.arange(40) // 2, 16
        )
        made.add(rng.integers(0, 256, (3, 2), np.uint8), np.arange(50, 53))
        made.save(folder)
    return folder


def read_index(folder):
    found = index.BucketIndex.open(folder)
    hits = found.search(np.zeros((2, -(-found.num_bits // 8)), np.uint8), 3)
    assert hits.item.shape == (2, 3)


@fuzz(
    60,
    place=st.integers(0, 10**6),
    value=json_value,
    also_bytes=st.booleans(),
    signs=st.booleans(),
    change=st.none() | st.tuples(st.integers(0, 20), damage),
)
def test_indexes(place, value, also_bytes, signs, change):
    folder = FOLDER / "index"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved_index(), folder)
    meta = json.loads((folder / "meta.json").read_text())
    nodes = [(meta, key) for key in meta]
    for name, entry in meta["files"].items():
        nodes += [(meta["files"], name)] + [(entry, key) for key in entry]
    parent, key = nodes[place % len(nodes)]
    if value is None:
        parent.pop(key)
    elif not also_bytes:
        parent[key] = value
    if signs:
        meta.pop("checksum", None)
        meta["checksum"] = storage._digest(meta)
    (folder / "meta.json").write_text(json.dumps(meta))
    if change:
        paths = sorted(folder.iterdir())
        path = paths[change[0] % len(paths)]
        if path.stat().st_size:
            path.write_bytes(damaged(path.read_bytes(), *change[1]))
    read_or_refuse(folder, read_index)


# Photos and archives

photo_formats = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000")


def encoded(name):
    rng = np.random.default_rng(2)
    image = Image.fromarray(rng.integers(0, 256, (9, 14, 3), np.uint8))
    stream = io.BytesIO()
    image.save(stream, name)
    return stream.getvalue()


@fuzz(80, name=st.sampled_from(photo_formats), changes=st.lists(damage, max_size=4))
def test_photos(name, changes):
    content = encoded(name)
    for change in changes:
        content = damaged(content or b"\0", *change)
    read_or_refuse(pathlib.Path("photo"), lambda _: photos.decode(content))


@fuzz(60, kind=st.sampled_from(["tar", "zip"]), changes=st.lists(damage, min_size=1, max_size=4))
def test_archives(kind, changes):
    folder = emptied()
    (folder / "a.png").write_bytes(encoded("PNG"))
    path = pathlib.Path(shutil.make_archive(str(FOLDER / "photos"), kind, folder))
    content = path.read_bytes()
    for change in changes:
        content = damaged(content or b"\0", *change)
    path.write_bytes(content)

    def read(path):
        members = (archives.tar_members if kind == "tar" else archives.zip_members)(path)
        for name, span in members.items():
            photos.decode(archives.read_span(path, span, name), name)

    read_or_refuse(path, read)
