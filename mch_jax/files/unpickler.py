"""Reading of arrays from files of other programs: .npz, .safetensors, torch's .pth, and pickles.

No code from a file is ever run. Pickles are read by an unpickler that builds NumPy arrays and torch
tensors of plain numbers only and refuses everything else. What it builds can hold no reference to
anything that outlives the call, its work is proportional to the length of the file, and sizes that
a file declares are compared with its length before anything is allocated.
"""

import collections
import io
import json
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mch_jax.files import hub, npz
from mch_jax.files.regular import read_bounded

# torch's names of storages, and the dtypes of their numbers. NumPy has no bfloat16.
BFLOAT16 = "bfloat16"
TORCH_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}
SAFETENSORS_DTYPES = {
    "F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": BFLOAT16, "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
MAX_FILE = 2**34  # bytes of a file, and of the arrays in it
_MAX_LEAVES = 100_000  # arrays and dicts
_MAX_DEPTH = 32
_MAX_NAME = 2_000  # characters
_MAX_AXES = 32
_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # of torch before 1.6


def _itemsize(dtype: str) -> int:
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


def _numbers(data: Any, dtype: str) -> np.ndarray:
    """Returns a view of bytes as numbers; bfloat16 becomes a new array of float32."""
    if dtype != BFLOAT16:
        return np.frombuffer(data, dtype)
    return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")


def _sizes(values: Any, what: str) -> tuple[int, ...]:
    """Returns a tuple of integers of at least 0; raises UnpicklingError if it is none."""
    is_plain = isinstance(values, tuple | list) and len(values) <= _MAX_AXES
    if not is_plain or not all(type(x) is int and 0 <= x < 2**62 for x in values):
        raise pickle.UnpicklingError(f"{what} is not a few integers of at least 0")
    return tuple(values)


def _key(key: Any) -> Any:
    """Returns the key of a dict; raises UnpicklingError unless it is a text or an integer.

    The hash of nested tuples would take exponential time.
    """
    if type(key) not in (str, int):
        raise pickle.UnpicklingError("a dict has a key that is neither text nor an integer")
    return key


class _Storage:
    """The data behind a torch tensor. The older format stores the data after the tensors."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: str, data: np.ndarray | None = None):
        self.dtype, self.data = dtype, data


class _Call:
    """A function that a pickle may call. It has no attribute that a pickle could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any):
        raise pickle.UnpicklingError("it changes a function")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _ordered_dict(pairs: Any = ()) -> "_Dict":
    if not isinstance(pairs, list | tuple):
        raise pickle.UnpicklingError("an OrderedDict is not made of pairs")
    return _Dict((_key(key), value) for key, value in pairs)


def _parameter(data: Any, *_: Any) -> Any:
    return data


class _Dict(collections.OrderedDict):
    """A dict of a file, whose further attributes, such as torch's _metadata, are ignored."""

    __slots__ = ()


class _DType:
    """A dtype as described in a file."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any, *_: Any):
        if not isinstance(name, str):
            raise pickle.UnpicklingError("an array has a dtype that is no text")
        self.name, self.order = name, "="

    def set_state(self, state: Any) -> None:
        """Takes the byte order from a state of NumPy's dtype."""
        if not isinstance(state, tuple) or len(state) < 2 or not isinstance(state[1], str):
            raise pickle.UnpicklingError("a dtype has another state than NumPy's")
        self.order = state[1]

    def plain(self) -> np.dtype:
        """Returns the dtype; raises UnpicklingError if it is not one of plain numbers."""
        text = f"{self.order[:2]}{self.name[:8]}"
        if not re.fullmatch("[<>=|][biuf][1248]", text):
            raise pickle.UnpicklingError(f"an array has the dtype {text}, not plain numbers")
        return np.dtype(text)


class _Array:
    """An array as described in a file."""

    __slots__ = ("state",)

    def __init__(self, *_: Any):
        self.state: Any = None

    def set_state(self, state: Any) -> None:
        """Takes a state of NumPy's array: version, shape, dtype, order and bytes."""
        self.state = state

    def array(self) -> np.ndarray:
        """Returns the array."""
        state = self.state
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _DType):
            raise pickle.UnpicklingError("an array has another state than NumPy's")
        _, shape, dtype, is_fortran, data = state
        if not isinstance(data, bytes | bytearray):
            raise pickle.UnpicklingError("an array has no bytes")
        values = np.frombuffer(data, dtype.plain())
        order = "F" if is_fortran is True else "C"
        return values.reshape(_sizes(shape, "the shape of an array"), order=order).copy()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (1, shape, dtype, order == "F", data)
    return array


class _Tensor:
    """A tensor as described in a file: a view into a storage."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        """Returns the array, once its storage has data."""
        data = self.storage.data if isinstance(self.storage, _Storage) else None
        (offset,) = _sizes((self.offset,), "the offset of a tensor")
        shape = _sizes(self.shape, "the shape of a tensor")
        strides = _sizes(self.strides, "the strides of a tensor")
        if data is None or math.prod(shape) > data.size or len(shape) != len(strides):
            raise pickle.UnpicklingError("a tensor reaches beyond its data")
        # NumPy checks that shape, strides and offset stay within the buffer.
        size = data.dtype.itemsize
        strides = [stride * size for stride in strides]
        return np.ndarray(shape, data.dtype, data.data, offset * size, strides).copy()


_CALLS: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "dtype"): _DType,
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
}
# Everything that pickles of arrays consist of. Operations that make instances, read extensions or
# refer to buffers outside the file are absent.
_OPERATIONS = (
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_TUPLE", "TUPLE", "TUPLE1",
    "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "PUT",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET", "GLOBAL",
    "STACK_GLOBAL", "PERSID", "BINPERSID",
)  # fmt: skip


# The Python version of pickle.Unpickler has a table of operations, which pickle.Unpickler lacks.
_PythonUnpickler: Any = pickle._Unpickler


class _ArrayUnpickler(_PythonUnpickler):
    """Unpickler that builds arrays and tensors of plain numbers and refuses everything else.

    Args:
      file: The pickle.
      storage: Function from a persistent id to a storage, for files of torch.
    """

    def __init__(self, file: io.BytesIO, storage: Callable[[Any], _Storage] | None = None):
        # Bytes of Python 2, which old pickles hold as text, keep their values.
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Returns a replacement for one of the few callables that build arrays and tensors."""
        plain = module.replace("numpy._core", "numpy.core")
        if (plain, name) in _CALLS:
            return _Call(_CALLS[plain, name])
        if (plain, name) == ("numpy", "ndarray"):
            return "ndarray"  # an argument of _reconstruct
        if module == "torch" and name in TORCH_DTYPES:
            return TORCH_DTYPES[name]
        raise pickle.UnpicklingError(
            f"it holds {module[:80]}.{name[:80]}, which is neither an array nor a tensor"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that a tensor refers to."""
        if self._storage is None:
            raise pickle.UnpicklingError("it refers to data outside the file")
        _, dtype, key, *_ = pid if isinstance(pid, tuple) else (None, None, None)
        is_text = isinstance(dtype, str) and isinstance(key, str)
        if not is_text or dtype not in TORCH_DTYPES.values():
            raise pickle.UnpicklingError("a tensor has no storage of plain numbers")
        return self._storage(pid)

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        call = self.stack[-1]
        if not isinstance(call, _Call) or not isinstance(args, tuple):
            raise pickle.UnpicklingError("it calls something that is not a function")
        self.stack[-1] = call(*args)

    def _load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, _DType | _Array):
            target.set_state(state)
        elif not isinstance(target, _Dict):
            raise pickle.UnpicklingError("it sets the state of something that has none")

    def _load_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError("it adds items to something that is not a dict")
        target.update((_key(key), x) for key, x in zip(items[::2], items[1::2], strict=True))

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._load_items([key, value])

    def _load_setitems(self) -> None:
        self._load_items(self.pop_mark())

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._load_items(items)

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("it holds an operation that no array needs")

    dispatch: Mapping[int, Callable[..., None]] = {
        **dict.fromkeys(range(256), _refuse),
        **{
            code[0]: _PythonUnpickler.dispatch[code[0]]
            for code in (getattr(pickle, name) for name in _OPERATIONS)
        },
        pickle.REDUCE[0]: _load_reduce,
        pickle.BUILD[0]: _load_build,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.DICT[0]: _load_dict,
    }


def _read_torch_zip(content: bytes) -> Any:
    """Reads the format of torch 1.6 and later: a zip with a pickle and one file per storage."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("it is a zip without torch's data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        # torch does not compress. A storage cannot be longer than the file that holds it.
        declared = sum(info.file_size for info in archive.infolist())
        if declared > len(content):
            raise pickle.UnpicklingError(
                f"it declares {declared:,} bytes in a file of {len(content):,}; torch's files are "
                "not compressed"
            )
        storages: dict[str, _Storage] = {}

        def storage(pid: tuple[Any, ...]) -> _Storage:
            _, dtype, key, *_ = pid
            if key not in storages:
                data = _numbers(archive.read(f"{root}data/{key}"), dtype)
                storages[key] = _Storage(dtype, data)
            if storages[key].dtype != dtype:
                raise pickle.UnpicklingError("a storage has two dtypes")
            return storages[key]

        return _ArrayUnpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _read_torch_stream(content: bytes) -> Any:
    """Reads the format of torch before 1.6: five pickles, followed by the storages."""
    storages: dict[str, _Storage] = {}

    def storage(pid: tuple[Any, ...]) -> _Storage:
        _, dtype, key, *_ = pid
        return storages.setdefault(key, _Storage(dtype))

    file = io.BytesIO(content)
    for _ in range(3):  # magic number, protocol version, properties of the machine
        _ArrayUnpickler(file).load()
    value = _ArrayUnpickler(file, storage).load()
    keys = _ArrayUnpickler(file).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError("its list of storages is damaged")
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        data = file.read(count * _itemsize(storages[key].dtype))
        if len(data) != count * _itemsize(storages[key].dtype):
            raise pickle.UnpicklingError("it is cut off")
        storages[key].data = _numbers(data, storages[key].dtype)
    return value


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """Reads the format of safetensors: a length, a JSON header, and the numbers."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(len(content) - 8, 100_000_000):
        raise pickle.UnpicklingError("it declares a header that is longer than the file")
    header = json.loads(content[8 : 8 + length])
    data = memoryview(content)[8 + length :]
    arrays, total = {}, 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype = SAFETENSORS_DTYPES.get(str(entry["dtype"]))
        if dtype is None:
            raise pickle.UnpicklingError(f"{name[:80]} has the dtype {str(entry['dtype'])[:20]}")
        shape = _sizes(entry["shape"], f"the shape of {name[:80]}")
        start, end = _sizes(entry["data_offsets"], f"the offsets of {name[:80]}")
        total += max(end - start, 0)
        if start > end or max(end, total) > len(data):
            raise pickle.UnpicklingError(f"{name[:80]} reaches beyond its data")
        if math.prod(shape) * _itemsize(dtype) != end - start:
            raise pickle.UnpicklingError(f"{name[:80]} has another shape than its data")
        arrays[name] = _numbers(data[start:end], dtype).reshape(shape).copy()
    return arrays


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays in an .npz, a .safetensors, a torch .pth or a pickle.

    The path may be the name of a file on the Hub (`hub`).

    Names of nested dicts are joined by dots. Of a training checkpoint, a dict with the key
    `state_dict`, only the value of this key is returned. bfloat16 becomes float32.

    Raises:
      ValueError: The file cannot be read, or contains anything but arrays, tensors, parameters and
        dicts of them.
    """
    path = Path(hub.local_path(os.fspath(path)))
    try:
        if path.suffix == ".npz":
            return npz.read(path)
        content = read_bounded(path, MAX_FILE)
        if path.suffix == ".safetensors":
            return _read_safetensors(content)
        if zipfile.is_zipfile(io.BytesIO(content)):
            value = _read_torch_zip(content)
        elif _MAGIC in content[:64]:
            value = _read_torch_stream(content)
        else:
            value = _ArrayUnpickler(io.BytesIO(content)).load()
        if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
            value = value["state_dict"]
        arrays, total = {}, 0
        for name, leaf in _flatten(value):
            arrays[name] = leaf.array()
            total += arrays[name].nbytes
            # Tensors may share a storage, but not so often that a small file fills the memory.
            if total > npz.RATIO * len(content):
                raise pickle.UnpicklingError("its tensors repeat the same numbers")
        return arrays
    except FileNotFoundError:
        raise ValueError(
            f"weights file {path} does not exist; give the path of an .npz, a .safetensors or a "
            "torch .pth"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle can raise anything
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"weights file {path} cannot be read ({reason}); expected an .npz, a .safetensors or a "
            "torch .pth state dict of plain arrays"
        ) from None


def _flatten(value: Any) -> Iterator[tuple[str, "_Tensor | _Array"]]:
    """Yields the arrays of nested dicts. The name of an array is its keys, joined by dots."""
    waiting, seen = [("", value, 0)], 0
    while waiting:
        name, value, depth = waiting.pop()
        seen += len(value) if isinstance(value, Mapping) else 0
        if seen > _MAX_LEAVES or depth > _MAX_DEPTH or len(name) > _MAX_NAME:
            raise pickle.UnpicklingError(
                f"it holds more than {_MAX_LEAVES:,} arrays and dicts, or nests them too deeply"
            )
        if isinstance(value, Mapping):
            for key, item in reversed(list(value.items())):
                waiting.append((f"{name}.{key}" if name else str(key), item, depth + 1))
        elif isinstance(value, _Tensor | _Array):
            yield name, value
        else:
            came = type(value).__name__
            raise pickle.UnpicklingError(
                f"{name[:80] or 'its content'} is a {came}, expected an array"
            )
