"""Codes in the files of FAISS, NumPy, Parquet and Lance."""

import contextlib
import struct

import faiss
import numpy as np
import pytest

from mch_jax.files import exchange
from mch_jax.files.codes_file import CodeFile
from mch_jax.index import BucketIndex


@pytest.fixture(params=[16, 32, 61, 128])
def file(request):
    """Returns 40 codes of 25 items."""
    num_bits = request.param
    rng = np.random.default_rng(num_bits)
    bits = rng.integers(0, 2, (40, num_bits), np.uint8)
    item = np.sort(np.concatenate([np.arange(25), rng.integers(0, 25, 15)]))
    return CodeFile(
        codes=np.packbits(bits, axis=1, bitorder="little"),
        item=item,
        ids=np.array([f"{i}é.jpg" for i in range(25)]),
        keep_prob=rng.random(40, np.float32),
        box=np.sort(rng.integers(0, 99, (40, 4), np.int32)),
        labels=np.zeros((25, 0), np.uint8),
        num_bits=num_bits,
    )


@pytest.mark.parametrize("ending", [".faiss", ".npy", ".parquet", ".lance"])
def test_codes_come_back(file, ending, tmp_path):
    if ending in (".parquet", ".lance"):
        pytest.importorskip("pyarrow" if ending == ".parquet" else "lance")
    path = tmp_path / f"codes{ending}"
    exchange.save(path, file)
    exchange.save(path, file)  # replaces it
    found = exchange.load(path)
    np.testing.assert_array_equal(found.codes, file.codes)
    np.testing.assert_array_equal(found.item, np.arange(40) if ending == ".npy" else file.item)
    has_length = ending in (".parquet", ".lance")
    assert found.num_bits == (file.num_bits if has_length else 8 * file.codes.shape[1])
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_faiss_reads_our_files_and_finds_the_items(file, tmp_path):
    exchange.save(tmp_path / "codes.faiss", file)
    index = faiss.read_index_binary(str(tmp_path / "codes.faiss"))
    distance, item = index.search(file.codes, 1)
    assert not distance.any()
    equal = (file.codes[:, None] == file.codes[None]).all(axis=2)
    for row, found in enumerate(item[:, 0]):
        assert found in file.item[equal[row]]


def test_files_of_faiss_are_read(file, tmp_path):
    flat = faiss.IndexBinaryFlat(8 * file.codes.shape[1])
    flat.add(file.codes)
    faiss.write_index_binary(flat, str(tmp_path / "flat.faiss"))
    found = exchange.load(tmp_path / "flat.faiss")
    np.testing.assert_array_equal(found.codes, file.codes)
    np.testing.assert_array_equal(found.item, np.arange(40))
    mapped = faiss.IndexBinaryIDMap(faiss.IndexBinaryFlat(8 * file.codes.shape[1]))
    mapped.add_with_ids(file.codes, file.item)
    faiss.write_index_binary(mapped, str(tmp_path / "mapped.faiss"))
    exchange.save(tmp_path / "ours.faiss", file)
    assert (tmp_path / "ours.faiss").read_bytes() == (tmp_path / "mapped.faiss").read_bytes()


def test_an_index_answers_from_any_of_them(tmp_path):
    codes = np.array([[1], [2], [7]], np.uint8)
    flat = faiss.IndexBinaryFlat(8)
    flat.add(codes)
    faiss.write_index_binary(flat, str(tmp_path / "flat.faiss"))
    hits = BucketIndex.build(*exchange.load(tmp_path / "flat.faiss")).search(codes[:1], 3)
    assert hits.item.tolist() == [[0, 1, 2]]
    assert hits.distance.tolist() == [[0, 2, 2]]


@pytest.mark.parametrize("ending", [".faiss", ".npy"])
def test_cut_and_changed_files_are_refused_or_read(file, ending, tmp_path):
    path = tmp_path / f"codes{ending}"
    exchange.save(path, file)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="has no codes that can be read"):
            exchange.load(path)
    for place in range(min(len(whole), 140)):
        for bit in (1, 128):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with contextlib.suppress(ValueError):  # the codes and items themselves may change
                assert exchange.load(path).codes.shape == file.codes.shape


def test_declared_sizes_allocate_nothing(tmp_path):
    path = tmp_path / "codes.faiss"
    header = struct.pack("<4siiqBi", b"IBxF", 64, 8, 2**40, 1, 1)
    path.write_bytes(header + struct.pack("<Q", 2**43))
    with pytest.raises(ValueError, match="it ends too early"):
        exchange.load(path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("codes.bin", b"", "expected .faiss, .npy, .parquet or .lance"),
        ("none.faiss", None, "No such file"),
        ("hnsw.faiss", struct.pack("<4siiqBi", b"IBHf", 8, 1, 0, 1, 1), "kind b'IBHf'"),
        ("empty.npy", b"", "expected an IndexBinaryFlat"),
    ],
)
def test_other_files_are_refused(name, content, reason, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        exchange.load(tmp_path / name)


def test_arrays_of_another_kind_are_refused(tmp_path):
    for wrong in (np.zeros((3, 4)), np.zeros(3, np.uint8), np.zeros((3, 2), np.uint8, order="F")):
        np.save(tmp_path / "wrong.npy", wrong)
        with pytest.raises(ValueError, match="has no codes that can be read: it is"):
            exchange.load(tmp_path / "wrong.npy")


def test_tables_without_codes_are_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    for column in ({"name": ["a"]}, {"code": [b"a", b"bc"]}, {"code": [b""]}, {"code": [3]}):
        pq.write_table(pa.table(column), tmp_path / "wrong.parquet")
        with pytest.raises(ValueError, match="has no codes that can be read"):
            exchange.load(tmp_path / "wrong.parquet")


def test_lists_of_bytes_are_codes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    lists = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 7, 255], pa.uint8()), 2)
    pq.write_table(pa.table({"code": lists}), tmp_path / "codes.parquet")
    assert exchange.load(tmp_path / "codes.parquet").codes.tolist() == [[1, 2], [7, 255]]
