import collections
import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from damage import damage, damaged, read_or_refuse
from hypothesis import given, settings
from hypothesis import strategies as st

from mch_jax.files import read_arrays


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
    for dtype in (np.dtype("O"), "O", torch.nn.Linear, torch.BFloat16Storage):
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


def test_a_pickle_leaves_nothing_behind(files, tmp_path):
    """BUILD with slot state sets attributes of whatever object is on the stack."""
    path = tmp_path / "evil.pkl"
    for module, name in (("torch._utils", "_rebuild_tensor_v2"), ("numpy", "dtype")):
        path.write_bytes(
            pickle.PROTO + b"\x02" + f"c{module}\n{name}\n".encode() + b"N}U\x05arrayNs\x86b."
        )
        assert "sets the attribute array of a function" in refused(path)
    for good in files:
        assert read_arrays(good)["a"].shape == (2, 3)


def test_a_small_pickle_of_endless_content_is_refused(tmp_path):
    node: dict = {}
    for _ in range(40):
        node = {"a": node, "b": node}
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(node))
    assert path.stat().st_size < 1000
    assert "more than 100,000 arrays and dicts" in refused(path)


def test_archives_that_unfold_to_far_more_than_they_are_are_refused(tmp_path):
    zeros = np.zeros(2**27, np.uint8)
    np.savez_compressed(tmp_path / "a.npz", a=zeros)
    assert "more than 256 times as many" in refused(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/data/0", zeros.data)
    assert "more than 256 times as many" in refused(tmp_path / "a.pth")
