import collections
import io
import json
import os
import pathlib
import pickle
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from damage import damage, damaged, read_or_refuse
from hypothesis import given, settings
from hypothesis import strategies as st

from mch_jax.files import npz, read_arrays


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def files(torch, tmp_path_factory) -> list[pathlib.Path]:
    directory = tmp_path_factory.mktemp("small")
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(2)}
    torch.save(state, directory / "zip.pth")
    torch.save(state, directory / "old.pth", _use_new_zipfile_serialization=False)
    arrays = {name: value.numpy() for name, value in state.items()}
    np.savez(directory / "a.npz", **arrays)
    (directory / "a.pkl").write_bytes(pickle.dumps(arrays))
    return sorted(directory.iterdir())


def refused(path: pathlib.Path) -> str:
    with pytest.raises(ValueError, match="weights file") as error:
        read_arrays(path)
    assert "\n" not in str(error.value)
    assert "Type-check" not in str(error.value)  # type checks run in tests only
    return str(error.value)


def test_views_and_dtypes_are_kept(torch, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "transposed": base.T,
        "slice": base[1:3, ::2],
        "half": base.half(),
        "integers": {"long": torch.arange(3), "byte": torch.arange(3).byte()},
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
    }
    expected = dict(state.pop("integers"), **state)
    for new in (True, False):
        torch.save({**state, "integers": {k: expected[k] for k in ("long", "byte")}},
                   tmp_path / "a.pth", _use_new_zipfile_serialization=new)  # fmt: skip
        arrays = read_arrays(tmp_path / "a.pth")
        assert len(arrays) == 7
        for name, value in arrays.items():
            like = expected[name.removeprefix("integers.")].numpy()
            assert value.dtype == like.dtype
            np.testing.assert_array_equal(value, like)


class Call:
    """An object whose pickle is a call of a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def zip_of(path: pathlib.Path, value, storages: dict[str, bytes]) -> pathlib.Path:
    """Writes a file of torch. Tuples that begin with "storage" become references to storages."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return path


def test_no_code_runs(torch, tmp_path):
    hostile = {"a": Call(os.system, f"touch {tmp_path / 'ran'}")}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(hostile))
    assert "system" in refused(tmp_path / "a.pkl")
    refused(zip_of(tmp_path / "a.pth", hostile, {}))
    torch.save(hostile, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    refused(tmp_path / "b.pth")
    np.savez(tmp_path / "a.npz", a=np.array([hostile["a"]], object))
    refused(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (3, 3), (3, 1)),  # nine numbers of a storage of eight
        (1, (8,), (1,)),
        (-1, (2,), (1,)),
        (7, (2,), (-1,)),
        (0, (2,), (2**62,)),
        (0, (2**40,), (0,)),
        (2**62, (1,), (1,)),
        (0, (-1, -1), (1, 1)),
        (0, (2, 2), (1,)),
        (0, ("a",), (1,)),
    ],
)
def test_tensors_stay_inside_their_storage(torch, tmp_path, offset, shape, strides):
    def write(*args):
        storage = ("storage", torch.FloatStorage, "0", "cpu", 8)
        tensor = Call(torch._utils._rebuild_tensor_v2, storage, *args, False, {})
        data = np.arange(8, dtype=np.float32).tobytes()
        return zip_of(tmp_path / "a.pth", {"a": tensor}, {"0": data})

    assert read_arrays(write(2, (2, 3), (3, 1)))["a"].tolist() == [[2, 3, 4], [5, 6, 7]]
    refused(write(offset, shape, strides))


def test_storages_are_plain_numbers_of_the_file(torch, tmp_path):
    rebuild = torch._utils._rebuild_tensor_v2
    no_bytes = np.zeros((1000, 0), np.float32)
    few_bytes = np.ndarray((1000,), "f4", b"four", 0, (0,))
    for storage in (no_bytes, few_bytes, "text", None):
        value = {"a": Call(rebuild, storage, 0, (1000,), (1,), False, {})}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
        refused(tmp_path / "a.pkl")
    for dtype in (np.dtype("O"), "O", torch.nn.Linear, torch.ComplexFloatStorage):
        tensor = Call(rebuild, ("storage", dtype, "0", "cpu", 1), 0, (1,), (1,), False, {})
        refused(zip_of(tmp_path / "a.pth", {"a": tensor}, {"0": bytes(8)}))


def test_arrays_of_any_layout(tmp_path):
    arrays = {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i2"),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float16),
        "scalar": np.array(2.0),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(arrays))
    read = read_arrays(tmp_path / "a.pkl")
    for name, value in arrays.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)


def test_state_of_numpy_cannot_be_changed(tmp_path):
    class State:
        """Its pickle is the dtype int64 with a wrong state, which NumPy would accept."""

        def __reduce__(self):
            return np.dtype, ("i8", False, False), (3, "<", None, None, None, -1, -1, 63)

    value = {"a": State(), "b": np.arange(3)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    refused(tmp_path / "a.pkl")
    assert np.dtype(np.int64).flags == 0
    structured = {"a": np.zeros(2, [("x", "f4"), ("y", "i4")])}
    for value in (structured, {"a": np.array(["text"])}, {"a": np.array(["2026"], "M8[D]")}):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
        refused(tmp_path / "a.pkl")


def test_other_contents_are_refused(tmp_path):
    values = [3, [np.zeros(2)], {"a": "text"}, {"a": np.array([None])}, {"a": {"b": None}}]
    values += [collections.Counter("a"), np.random.default_rng(0)]
    for value in values:
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
        refused(tmp_path / "a.pkl")
    refused(tmp_path)  # a folder
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme", "nothing here")
    assert "data.pkl" in refused(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="does not exist"):
        read_arrays(tmp_path / "none.pth")


def test_nothing_is_left_behind(torch, files, tmp_path):
    """A pickle that sets attributes of what it calls changes no later file."""
    expected = read_arrays(next(f for f in files if f.name == "zip.pth"))
    empty = b"c" + b"builtins\nlist\n"
    for module, name in (
        ("torch._utils", "_rebuild_tensor_v2"), ("numpy", "dtype"), ("numpy", "ndarray"),
        ("collections", "OrderedDict"), ("numpy.core.multiarray", "_reconstruct"),
    ):  # fmt: skip
        target = f"c{module}\n{name}\n".encode()
        for state in (b"}X\x05\x00\x00\x00arrayNsb.", b"N}X\x05\x00\x00\x00arrayNs\x86b."):
            (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + target + state)
            refused(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(empty + b".")
    refused(tmp_path / "a.pkl")
    again = read_arrays(next(f for f in files if f.name == "zip.pth"))
    assert again.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(again[name], value)


def nested(kind, key=False) -> bytes:
    """Returns a pickle of some hundred bytes whose value has 2^200 leaves."""
    if kind == "dict":
        step = b"}(X\x01\x00\x00\x00aj%bX\x01\x00\x00\x00bj%bu\x94"
        parts = [b"\x80\x04}\x94"]
        for i in range(200):
            place = i.to_bytes(4, "little")
            parts.append(step.replace(b"%b", place))
        return b"".join(parts) + b"."
    value = b"\x80\x04K\x01" + b"2\x86" * 200
    return value.replace(b"\x80\x04", b"\x80\x04}") + (b"K\x01s." if key else b"\x86.")


@pytest.mark.parametrize(
    "data",
    [
        nested("dict"),
        nested("tuple"),
        nested("tuple", key=True),
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"few.",  # bytes of 1 TiB
        b"\x80\x04\x96" + (2**40).to_bytes(8, "little") + b"few.",
        b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"few.",  # a frame of 1 TiB
        b"\x80\x04K\x01r\xff\xff\xff\xff.",  # the last of 2^32 places of the memo
        b"\x80\x04}}}K\x01s.",
    ],
)
def test_work_and_memory_are_bounded_by_the_length(tmp_path, data):
    (tmp_path / "a.pkl").write_bytes(data)
    tracemalloc.start()
    start = time.process_time()
    try:
        refused(tmp_path / "a.pkl")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 5


def test_compressed_storages_are_refused(torch, files, tmp_path):
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert "torch's files are not compressed" in refused(tmp_path / "a.pth")


def test_tensors_do_not_multiply_the_file(torch, tmp_path):
    base = torch.zeros(2**12)
    torch.save({str(i): base for i in range(2000)}, tmp_path / "a.pth")
    assert "repeat the same numbers" in refused(tmp_path / "a.pth")


def test_parameters_checkpoints_and_bfloat16(torch, tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"a": torch.nn.Parameter(weight), "b": weight.bfloat16()}
    for new in (True, False):
        value = {"epoch": 3, "arch": "alexnet", "state_dict": state}
        torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=new)
        arrays = read_arrays(tmp_path / "a.pth")
        assert list(arrays) == ["a", "b"]
        for array in arrays.values():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, weight.numpy())
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "a.pth")  # has _metadata
    assert list(read_arrays(tmp_path / "a.pth")) == ["weight", "bias"]


def safetensors(entries: dict, data: bytes, length: int | None = None) -> bytes:
    header = json.dumps(entries).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def test_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    floats = np.arange(6, dtype=np.float32)
    half = (floats.view(np.uint32) >> 16).astype(np.uint16)
    entries = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [6], "data_offsets": [24, 36]},
    }
    path.write_bytes(safetensors(entries, floats.tobytes() + half.tobytes()))
    arrays = read_arrays(path)
    np.testing.assert_array_equal(arrays["a"], floats.reshape(2, 3))
    np.testing.assert_array_equal(arrays["b"], floats)
    wrong = [
        {"shape": [2, 4]}, {"data_offsets": [0, 2**40], "shape": [2**38]}, {"shape": [-2, -3]},
        {"dtype": "F32X"}, {"data_offsets": [24, 0]}, {"shape": "ab"}, {"data_offsets": None},
    ]  # fmt: skip
    for change in wrong:
        path.write_bytes(safetensors({"a": entries["a"] | change}, floats.tobytes()))
        refused(path)
    for content in (b"", b"1234567", safetensors({}, b"", 2**60), safetensors({"a": 3}, b"")):
        path.write_bytes(content)
        refused(path)


@pytest.mark.parametrize("which", range(4))
def test_truncated_files_are_refused(files, tmp_path, which):
    data = files[which].read_bytes()
    path = tmp_path / files[which].name
    for share in (0, 0.001, 0.5, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        refused(path)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(which=st.integers(0, 3), change=damage, random=st.none() | st.binary(max_size=60))
def test_damaged_weights_are_read_or_refused(files, tmp_path_factory, which, change, random):
    source = files[which]
    path = tmp_path_factory.getbasetemp() / f"damaged{source.suffix}"
    path.write_bytes(damaged(source.read_bytes(), *change) if random is None else random)
    read_or_refuse(path, read_arrays)


def test_archives_that_unfold_to_far_more_than_they_are_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "SMALL", 2**20)
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**21, np.uint8))
    assert "it declares 2,097,280 bytes of arrays" in refused(tmp_path / "a.npz")
