import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from damage import damage, damaged, read_or_refuse
from hypothesis import given, settings

from mch_jax.files import codes_file, npz
from mch_jax.files.codes_file import FORMAT, CodeFile


def code_file() -> CodeFile:
    return CodeFile(
        codes=np.array([[0xFF, 0b1], [0x0F, 0b0], [0xAA, 0b1]], np.uint8),
        item=np.array([0, 0, 1]),
        ids=np.array(["a.jpg", "päärynä.jpg"]),
        keep_prob=np.array([1, 0.75, 1], np.float32),
        box=np.array([[0, 0, 9, 9], [0, 0, 4, 4], [0, 0, 8, 5]], np.int32),
        labels=np.array([[1, 0, 1], [0, 0, 0]], np.uint8),
        num_bits=9,
    )


def assert_same(a: CodeFile, b: CodeFile) -> None:
    for name in CodeFile._fields:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert np.asarray(getattr(a, name)).dtype == np.asarray(getattr(b, name)).dtype


@pytest.mark.parametrize("name", ["a.npz", "codes"])
def test_codes_round_trip(tmp_path, name):
    codes_file.save(tmp_path / name, code_file())
    assert_same(codes_file.load(tmp_path / name), code_file())
    assert [x.name for x in tmp_path.iterdir()] == [name]


def test_numpy_can_open_codes_files(tmp_path):
    codes_file.save(tmp_path / "a.npz", code_file())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["format"] == FORMAT == "mch-codes/1"
        assert (arrays["num_bits"].dtype, arrays["num_bits"].shape) == (np.int64, ())
        assert set(arrays) == {*CodeFile._fields, "format"}


def test_empty_codes_files_round_trip(tmp_path):
    empty = code_file()
    empty = empty._replace(**{k: getattr(empty, k)[:0] for k in CodeFile._fields[:-1]})
    codes_file.save(tmp_path / "a.npz", empty)
    assert_same(codes_file.load(tmp_path / "a.npz"), empty)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": np.str_("mch-codes/2")}, "no array 'format' that says"),
        ({"format": None}, "no array 'format'"),
        ({"labels": None}, "no array 'labels'"),
        ({"extra": np.zeros(1)}, "unknown array 'extra'"),
        (
            {"num_bits": np.int64(17)},
            r"codes has the shape \(3, 2\), expected \(3, 3\)",
        ),
        ({"num_bits": np.int64(0)}, "num_bits is 0"),
        ({"num_bits": np.str_("nine")}, "num_bits is <U4, expected integers"),
        (
            {"codes": np.array([[0xFF, 0b1], [0x0F, 0b10], [0xAA, 0b1]], np.uint8)},
            "padding must be 0",
        ),
        ({"codes": np.zeros((3, 2), np.float32)}, "codes is float32"),
        ({"codes": np.zeros(3, np.uint8)}, "codes has the shape"),
        ({"item": np.array([0, 1, 0])}, "item does not ascend"),  # descending
        ({"item": np.array([0, 0, 2])}, "item does not ascend"),
        ({"item": np.array([0, 0, 0])}, "item does not ascend"),  # item 1 has no code
        ({"item": np.array([-1, 0, 1])}, "item does not ascend"),
        ({"item": np.array([0, 1])}, "item has the shape"),
        ({"item": np.array([0.0, 0.0, 1.0])}, "item is float64"),
        ({"ids": np.array([1, 2])}, "ids is int64, expected text"),
        ({"ids": np.array(["a"])}, "labels has the shape"),
        ({"keep_prob": np.ones((3, 1), np.float32)}, "keep_prob has the shape"),
        ({"keep_prob": np.array([1, np.nan, 1], np.float32)}, "keep_prob holds a value"),
        ({"keep_prob": np.array([1, 1.5, 1], np.float32)}, "keep_prob ranges from"),
        ({"box": np.full((3, 4), -1, np.int32)}, "box ranges from -1"),
        ({"box": np.array([[9, 9, 1, 1]] * 3, np.int32)}, "a box ends before"),
        ({"labels": np.full((2, 3), 2, np.uint8)}, "labels ranges from"),
        ({"box": np.zeros((3, 2), np.int32)}, "box has the shape"),
        ({"labels": np.zeros((3, 3), np.uint8)}, "labels has the shape"),
        ({"labels": np.zeros(2, np.uint8)}, "labels has the shape"),
        ({"box": np.array([[None] * 4] * 3)}, "box is object"),  # a pickle
    ],
)
def test_unsound_codes_are_refused(tmp_path, change, reason):
    arrays = code_file()._asdict() | {"num_bits": np.int64(9), "format": np.str_(FORMAT)}
    np.savez(tmp_path / "a.npz", **{k: v for k, v in (arrays | change).items() if v is not None})
    with pytest.raises(ValueError, match=f"is not a sound codes file: .*{reason}") as error:
        codes_file.load(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.npz does not exist; expected an .npz"):
        codes_file.load(tmp_path / "a.npz")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(change=damage)
def test_damaged_codes_are_read_or_refused(tmp_path_factory, change):
    path = tmp_path_factory.getbasetemp() / "damaged-codes.npz"
    codes_file.save(path, code_file())
    path.write_bytes(damaged(path.read_bytes(), *change))
    read_or_refuse(path, codes_file.load)


def bomb(path, name="keep_prob.npy", shape=(800_000_000,), claimed=None):
    """Writes a sound codes file in which one array is zeros that inflate a thousandfold."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        arrays = code_file()._asdict() | {"num_bits": np.int64(9), "format": np.str_(FORMAT)}
        for key, value in arrays.items():
            if f"{key}.npy" != name:
                with archive.open(f"{key}.npy", "w") as member:
                    np.lib.format.write_array(member, np.asarray(value))
        with archive.open(name, "w", force_zip64=True) as member:
            header = {"descr": "<f4", "fortran_order": False, "shape": claimed or shape}
            np.lib.format.write_array_header_1_0(member, header)
            zeros, left = bytes(2**20), 4 * int(np.prod(shape))
            while left > 0:
                left -= member.write(zeros[: min(left, len(zeros))])
    return path


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"shape": (2**21,)}, "it declares 8,389,"),
        ({"shape": (3,), "claimed": (2**40,)}, "keep_prob declares float32"),
        ({"shape": (2**20,)}, r"item has the shape \(3,\)|keep_prob has the shape"),
        ({"name": "more.npy", "shape": (2**20,)}, "unknown array 'more'"),
        ({"name": "more.bin", "shape": (2**20,)}, "unknown array 'more.bin'"),
    ],
)
def test_declared_sizes_are_refused_before_anything_is_allocated(
    tmp_path, monkeypatch, arguments, reason
):
    monkeypatch.setattr(npz, "SMALL", 2**22 + 2**20)
    path = bomb(tmp_path / "a.npz", **arguments)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=reason):
            codes_file.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    for path in (tmp_path / "a.npz", "/dev/zero", tmp_path):
        with pytest.raises(ValueError, match="not a regular file"):
            codes_file.load(path)
