"""Folders, lists and tars that would hang a reader or fill its memory."""

import io
import os
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import small_run as small

from mch_jax import data
from mch_jax.data import archives, photos, sources
from mch_jax.retriever import pixels

TERABYTE = 2**40


@contextmanager
def small_and_quick() -> Iterator[None]:
    """Asserts that the block takes less than 32 MiB of memory and 5 s."""
    tracemalloc.start()
    began = time.monotonic()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 5


def hole(path, size):
    path.touch()
    os.truncate(path, size)


def long_jpeg(path):
    small.photo(0).save(path, "JPEG")
    os.truncate(path, 2 * photos.MAX_FILE)


HOSTILE: dict[str, tuple[Callable, str]] = {
    "a pipe": (os.mkfifo, "not a regular file"),
    "a link to an endless device": (lambda p: p.symlink_to("/dev/zero"), "not a regular|outside"),
    "a link to itself": (lambda p: p.symlink_to(p.name), "loop|symbolic links"),
    "a folder": (os.mkdir, "not a regular file|Is a directory"),
    "a hole of 1 TiB": (lambda p: hole(p, TERABYTE), "1,099,511,627,776 bytes, expected at most"),
    "a hole of 100 MiB": (lambda p: hole(p, 100 * 2**20), "is none of JPEG"),
    "a JPEG followed by a hole": (long_jpeg, "1,073,741,824 bytes, expected at most"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_damaged_photos(tmp_path, kind):
    for name in "abc":
        small.photo(ord(name)).save(tmp_path / f"{name}.png")
    make, reason = HOSTILE[kind]
    make(tmp_path / "d.jpg")
    rows = "a.png,train,1,0\nb.png,database,0,1\nc.png,query,1,0\nd.jpg,train,1,0\n"
    (tmp_path / "labels.csv").write_text("file,split,cat,dog\n" + rows)
    with small_and_quick():
        with pytest.raises(ValueError, match=rf"1 of 4 photos are damaged.*d\.jpg.*({reason})"):
            data.audit(data.load("folder", tmp_path))
        dataset, found = data.audit(data.load("folder", tmp_path), "skip")
        assert found["damaged"] == ["d.jpg"]
        assert len(dataset.ids) == 3
        readable = []
        for photo in sources.find(tmp_path):
            try:
                sources.decode(photo)
                readable.append(photo.id)
            except ValueError as error:
                assert "d.jpg" in str(error)  # noqa: PT017
        assert readable == ["a.png", "b.png", "c.png"]
        with pytest.raises(ValueError, match=reason):
            pixels(tmp_path / "d.jpg")


def png():
    stream = io.BytesIO()
    small.photo(1).save(stream, "PNG")
    return stream.getvalue()


def header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(content):
    return content + bytes(-len(content) % 512)


def sparse_member(name):
    """Returns a member of which the tar holds one block, and whose file has 1 TiB."""
    block = bytearray(header(name, 512, tarfile.GNUTYPE_SPARSE))
    block[386:398], block[398:410] = b"00000000000\0", b"00000001000\0"
    block[483:495] = b"\x80" + TERABYTE.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(512)


def write(path, *parts):
    content = padded(png())
    path.write_bytes(b"".join([header("a.png", len(png())), content, *parts, bytes(1024)]))


def test_sparse_members_and_holes_of_tars(tmp_path):
    write(tmp_path / "sparse.tar", sparse_member("b.png"))
    write(tmp_path / "hole.tar", header("c.png", TERABYTE))
    os.truncate(tmp_path / "hole.tar", 2 * TERABYTE)
    reasons = {}
    with small_and_quick():
        for photo in sources.find(tmp_path):
            try:
                np.testing.assert_array_equal(sources.decode(photo), np.asarray(small.photo(1)))
            except ValueError as error:
                reasons[photo.id] = str(error)
    assert sorted(reasons) == ["hole.tar/c.png", "sparse.tar/b.png"]
    assert "1,099,511,627,776 bytes" in reasons["hole.tar/c.png"]
    assert "stored in pieces" in reasons["sparse.tar/b.png"]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_a_terabyte_are_refused(tmp_path, kind):
    path = tmp_path / "a.tar"
    write(path, header("x", TERABYTE, kind))
    with small_and_quick(), pytest.raises(ValueError, match=r"a\.tar' is not a whole"):
        archives.tar_members(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"a\.tar' is not a whole.*not a regular file"):
        sources.find(tmp_path)


def test_loops_of_links_and_deep_folders_are_left_out(tmp_path):
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        small.photo(0).save(folder / "a.png")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    (tmp_path / "x.png").symlink_to("y.png")
    (tmp_path / "y.png").symlink_to("x.png")
    folder = tmp_path
    for _ in range(300):
        folder = folder / "d"
        folder.mkdir()
    small.photo(0).save(folder / "deep.png")
    small.photo(0).save(tmp_path.joinpath(*"d" * 100) / "b.png")
    with small_and_quick():
        found = sources.find(tmp_path)
    assert [photo.id for photo in found] == [
        "a.png", "x.png", "y.png", "d/" * 100 + "b.png", "sub/a.png",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"'x\.png' is a loop of links"):
        sources.decode(found[1])


@pytest.mark.parametrize("place", ["list", "labels", "query", "tar"])
def test_long_names_are_refused(tmp_path, place):
    name = "/home/" + "d/" * 10_000 + "a.png"
    small.photo(0).save(tmp_path / "a.png")
    if place == "tar":
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo(name[1:]))
        photo = sources.find(tmp_path / "a.tar")[0]
        with pytest.raises(ValueError, match="has 20,010 characters") as error:
            sources.decode(photo)
    elif place == "list":
        (tmp_path / "list.txt").write_text(f"a.png\n{name[1:]}\n")
        with pytest.raises(ValueError, match=r"list\.txt' line 2.*20,010 char") as error:
            sources.find(tmp_path / "list.txt")
    else:
        if place == "labels":
            (tmp_path / "labels.csv").write_text(f"file,split,cat\n{name},train,1\n")
        else:
            lines = "".join(f"{i}{name} 1 0\n" for i in range(300))
            for split in ("query", "database", "train"):
                (tmp_path / f"{split}.txt").write_text(lines)
        with pytest.raises(ValueError, match=r"20,0\d\d characters in 10,00") as error:
            data.load("folder", tmp_path)
    assert len(str(error.value)) < 400


def test_lists_of_deep_paths_take_little_time(tmp_path):
    """Each path is looked for below the root with fewer and fewer of its leading folders."""
    lines = "".join(f"/{'d/' * 95}{i}/a.png 1 0\n" for i in range(3000))
    for split in ("query", "database", "train"):
        (tmp_path / f"{split}.txt").write_text(lines)
    began = time.monotonic()
    with pytest.raises(ValueError, match="twice"):  # they all become a.png
        data.load("folder", tmp_path)
    assert time.monotonic() - began < 15
