"""Several writers of one saved index, failed saves, and files that change under an open index."""

import errno
import os

import numpy as np
import pytest

from mch_jax.index import BucketIndex, storage


def arrays(first, count):
    item = np.arange(first, first + count)
    words = (item * 2654435761 % 2**32).astype("<u4").reshape(-1, 1)
    return words.view(np.uint8), item


def build(count):
    return BucketIndex.build(*arrays(0, count), 32)


def answers(index):
    return [array.tolist() for array in index.search(arrays(0, 16)[0], 20)]


@pytest.fixture
def directory(tmp_path):
    build(9000).save(tmp_path / "index")  # large enough for files that are mapped
    return tmp_path / "index"


def test_of_two_writers_the_second_gets_an_error(directory):
    first, second = BucketIndex.open(directory), BucketIndex.open(directory)
    first.add(*arrays(9000, 60))
    second.add(*arrays(9060, 60))
    first.save(directory)
    with pytest.raises(
        ValueError, match="was saved by another process after this index was opened"
    ):
        second.save(directory)
    assert len(BucketIndex.open(directory)) == 9060
    again = BucketIndex.open(directory)
    again.add(*arrays(9060, 60))
    again.save(directory)
    again.save(directory)
    assert len(BucketIndex.open(directory)) == 9120
    with pytest.raises(ValueError, match="was saved by another process"):
        first.save(directory)
    build(10).save(directory)  # a new index replaces the saved one
    assert len(BucketIndex.open(directory)) == 10


def test_a_failed_save_leaves_nothing_behind(directory, monkeypatch):
    before, writes = {path.name for path in directory.iterdir()}, []
    fsync = os.fsync

    def full(handle):
        writes.append(handle)
        if len(writes) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    index = BucketIndex.open(directory)
    index.add(*arrays(9000, 60))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        index.save(directory)
    monkeypatch.undo()
    assert {path.name for path in directory.iterdir()} == before
    index.save(directory)
    assert len(BucketIndex.open(directory)) == 9060


def test_leftovers_are_removed_before_the_next_save_writes(directory, monkeypatch):
    left = [directory / "base-keys-0123456789abcdef.npy", directory / "meta.json.new"]
    for path in left:
        path.write_bytes(b"left by a killed process")
    write = storage._write_array

    def checked(*arguments):
        assert not any(path.exists() for path in left)
        return write(*arguments)

    monkeypatch.setattr(storage, "_write_array", checked)
    index = BucketIndex.open(directory)
    index.add(*arrays(9000, 1))
    index.save(directory)


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_a_file_that_changes_under_the_map_is_noticed(directory, how):
    index = BucketIndex.open(directory)
    path = next(directory.glob("base-keys-*"))
    content = path.read_bytes()
    if how == "cut":
        os.truncate(path, 4096)
    else:
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 255]) + content[-8:])
    for _ in range(2):
        with pytest.raises(ValueError, match=f"{path.name} was cut or changed") as error:
            index.search(arrays(0, 1)[0], 3)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="was cut or changed"):
        index.merge()
    with pytest.raises(ValueError, match="was cut or changed"):
        index.save(directory)
    path.write_bytes(content)
    assert answers(index) == answers(build(9000))


def test_a_file_with_another_time_and_the_same_bytes_is_used(directory):
    index = BucketIndex.open(directory)
    for path in directory.glob("*.npy"):
        os.utime(path)
    assert answers(index) == answers(build(9000))
    index.add(*arrays(9000, 60))
    index.merge()
    index.save(directory)
    assert len(index._saved.mapped) == 0  # all arrays are new
    assert len(BucketIndex.open(directory, like=index)) == 9060


def test_a_merged_index_does_not_need_its_old_files(directory):
    index = BucketIndex.open(directory)
    expected = answers(index)
    index.merge()
    os.truncate(next(directory.glob("base-keys-*")), 4096)
    assert answers(index) == expected
