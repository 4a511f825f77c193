"""Reading of arrays from files of other programs: .npz, torch's .pth, and pickles.

No code from a file is ever run. Pickles are read by an unpickler that builds NumPy arrays and torch
tensors of plain numbers only and refuses everything else.
"""

import collections
import io
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mch_jax.files.whole import check_size, read_zip

TORCH_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ByteStorage": "|u1",
}


MAX_NODES = 100_000  # arrays and dicts in one file; a pickle of a few bytes can describe 2^40


class _Builder:
    """A callable that a pickle may call but not change.

    A pickle can set attributes of every object that it reaches. It is therefore given neither
    classes nor functions of this module, whose change would outlast the file.
    """

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]):
        object.__setattr__(self, "_build", build)

    def __call__(self, *arguments: Any) -> Any:
        return self._build(*arguments)

    def __setattr__(self, name: str, value: Any):
        raise pickle.UnpicklingError(f"it sets the attribute {name} of a function")


class _Storage:
    """The data behind a torch tensor. The older format stores the data after the tensors."""

    def __init__(self, dtype: Any, data: Any = None):
        self.dtype, self.data = dtype, data


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that builds arrays and tensors of plain numbers and refuses everything else.

    Args:
      file: The pickle.
      storage: Function from a persistent id to a storage, for files of torch.
    """

    def __init__(self, file: io.BufferedIOBase, storage: Callable[[Any], _Storage] | None = None):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Returns a replacement for one of the few callables that build arrays and tensors."""
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray")}:
            return _Builder(_Array)
        if (module, name) == ("numpy", "dtype"):
            return _Builder(_DType)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Builder(_Tensor)
        if module == "torch" and name in TORCH_DTYPES:
            return TORCH_DTYPES[name]
        raise pickle.UnpicklingError(
            f"it holds {module}.{name}, which is neither an array nor a tensor"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that a tensor refers to."""
        if self._storage is None:
            raise pickle.UnpicklingError("it refers to data outside the file")
        return self._storage(pid)


# These two classes stand in for NumPy's array and dtype, whose own __setstate__ does not check its
# argument: a wrong state of a dtype would change the dtype object that all arrays share.


class _DType:
    """A dtype as described in a file."""

    def __init__(self, name: Any, *_: Any):
        self.name, self.order = name, "="

    def __setstate__(self, state: Any):
        self.order = state[1]

    def plain(self) -> np.dtype:
        """Returns the dtype; raises UnpicklingError if it is not one of plain numbers."""
        text = f"{self.order}{self.name}"
        if not re.fullmatch("[<>=|][biuf][1248]", text):
            raise pickle.UnpicklingError(f"an array has the dtype {text}, not plain numbers")
        return np.dtype(text)


class _Array:
    """An array as described in a file."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any):
        self.state = state

    def array(self) -> np.ndarray:
        """Returns the array."""
        _, shape, dtype, is_fortran, data = self.state
        values = np.frombuffer(data, dtype.plain())
        return values.reshape(shape, order="F" if is_fortran else "C").copy()


class _Tensor:
    """A tensor as described in a file: a view into a storage."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        """Returns the array, once its storage has data."""
        data = self.storage.data
        if data is None or math.prod(self.shape) > data.size or min((0, *self.strides)) < 0:
            raise pickle.UnpicklingError("a tensor reaches beyond its data")
        # NumPy checks that shape, strides and offset stay within the buffer.
        size = data.dtype.itemsize
        strides = [stride * size for stride in self.strides]
        view = np.ndarray(self.shape, data.dtype, data.data, self.offset * size, strides)
        return view.copy()


def _read_torch_zip(path: Path) -> Any:
    """Reads the format of torch 1.6 and later: a zip with a pickle and one file per storage."""
    with zipfile.ZipFile(path) as archive:
        check_size(archive)
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("it is a zip without torch's data.pkl")
        root = pickles[0].removesuffix("data.pkl")

        def storage(pid: Any) -> _Storage:
            _, dtype, key, *_ = pid
            return _Storage(dtype, np.frombuffer(archive.read(f"{root}data/{key}"), dtype))

        return _ArrayUnpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _read_torch_stream(path: Path) -> Any:
    """Reads the format of torch before 1.6: five pickles, followed by the storages."""
    storages: dict[str, _Storage] = {}

    def storage(pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return storages.setdefault(key, _Storage(dtype))

    with open(path, "rb") as file:
        for _ in range(3):  # magic number, protocol version, properties of the machine
            _ArrayUnpickler(file).load()
        value = _ArrayUnpickler(file, storage).load()
        for key in _ArrayUnpickler(file).load():
            count = int(np.fromfile(file, "<i8", 1)[0])
            storages[key].data = np.fromfile(file, storages[key].dtype, count)
        return value


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays in an .npz, a torch .pth or a pickle.

    Names of nested dicts are joined by dots.

    Raises:
      ValueError: The file cannot be read, or contains anything but arrays, tensors and dicts of
        them.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            return read_zip(path)
        if zipfile.is_zipfile(path):
            value = _read_torch_zip(path)
        else:
            with open(path, "rb") as file:
                is_torch = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in file.read(64)
                file.seek(0)
                value = None if is_torch else _ArrayUnpickler(file).load()
            if is_torch:
                value = _read_torch_stream(path)
        return dict(_flatten(value))
    except FileNotFoundError:
        raise ValueError(
            f"weights file {path} does not exist; give the path of an .npz or a torch .pth"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"weights file {path} cannot be read ({reason}); expected an .npz or a torch .pth "
            "state dict of plain arrays"
        ) from None


def _flatten(value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of nested dicts. The name of an array is its keys, joined by dots."""
    stack, num_nodes = [("", value)], 0
    while stack:
        prefix, value = stack.pop()
        num_nodes += 1
        if num_nodes > MAX_NODES:
            raise pickle.UnpicklingError(f"it holds more than {MAX_NODES:,} arrays and dicts")
        if isinstance(value, Mapping):
            items = [(f"{prefix}.{key}" if prefix else str(key), x) for key, x in value.items()]
            stack += reversed(items)
        elif isinstance(value, _Tensor | _Array):
            yield prefix, value.array()
        else:
            name = type(value).__name__
            raise pickle.UnpicklingError(
                f"{prefix or 'its content'} is a {name}, expected an array"
            )
