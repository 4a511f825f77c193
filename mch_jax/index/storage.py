"""The files of a saved index: a `meta.json` and one .npy file per array.

Arrays are written under new names, and replacing `meta.json` makes them the saved state. A crash
before that leaves the previous state.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mch_jax.files import locks
from mch_jax.index.long_codes import num_words
from mch_jax.index.segment import num_slots
from mch_jax.index.words import MAX_BITS, MAX_LONG_BITS
from mch_jax.kernels import checksum as checksum_kernel
from mch_jax.kernels.bits import BLOCK_ROWS
from mch_jax.kernels.segment import Segment, Segments

INDEX_FORMAT = "mch-index/2"
LONG_FORMAT = "mch-index/3"  # codes of more than 64 bits, which earlier versions cannot read
DTYPES = {
    "keys": np.uint64, "offsets": np.uint32, "items": np.uint32, "pivots": np.uint64,
    "rings": np.uint32, "table": np.uint32, "dead": np.uint64,
}  # fmt: skip
_ARRAY_FILE = re.compile(rf"(base|delta)-({'|'.join(Segment._fields)})-[0-9a-f]{{16}}\.npy")


SMALLEST_MAP = 2**16  # bytes; smaller files are read into memory instead of being mapped


class MappedFile:
    """A file that is mapped into memory, kept open to notice that it changes under the map.

    Args:
      path: Path of the file.
      checksum: Checksum that the file should have.
    """

    def __init__(self, path: Path, checksum: str):
        self.path, self._expected = path, checksum
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._handle)
        self._status = os.fstat(self._handle)
        self._is_whole = True
        with open(self._handle, "rb", closefd=False) as file:
            self.raw = np.asarray(np.memmap(file, np.uint8, "c"))

    def check(self) -> None:
        """Checks the size and the time of change and, if the latter differs, the checksum.

        Raises:
          ValueError: The file was cut or changed since it was opened.
        """
        status = os.fstat(self._handle)
        same_size = status.st_size == self._status.st_size
        if same_size and status.st_mtime_ns == self._status.st_mtime_ns and self._is_whole:
            return
        self._is_whole = same_size and _checksum(self.raw) == self._expected
        if not self._is_whole:
            raise ValueError(
                f"{self.path} was cut or changed after the index was opened; restore the file, or "
                "save the index again, and open it again"
            )
        self._status = status  # only its time differs, as after `touch`


class SavedState(NamedTuple):
    """What is known about the files of an index.

    Attributes:
      directory: Where they are.
      arrays: Each array by name, with its entry in `meta.json`.
      version: Digest of `meta.json`.
      mapped: The files that are mapped into memory, by the name of their array.
    """

    directory: Path
    arrays: dict[str, tuple[np.ndarray, dict]]
    version: str
    mapped: dict[str, MappedFile]

    def check(self, segments: Segments) -> None:
        """Checks those mapped files whose arrays are among the given ones.

        Raises:
          ValueError: A file was cut or changed since it was opened.
        """
        if self.mapped:
            used = dict(_named_arrays(segments))
            for name, file in self.mapped.items():
                if used[name] is self.arrays[name][0]:
                    file.check()


def save(
    directory: Path, num_bits: int, segments: Segments, earlier: SavedState | None
) -> SavedState:
    """Saves the arrays of an index. Call it under `lock`.

    Args:
      directory: Where to save them. It has to exist.
      num_bits: Code length q.
      segments: The arrays.
      earlier: An earlier state. Its arrays are not written again if it has the same directory.

    Raises:
      ValueError: The directory holds something that is not an index, or another process has saved
        an index there since `earlier`.
    """
    named: set[str] = set()
    if (directory / "meta.json").exists():
        saved = _read_meta(directory, any_version=True)  # never overwrite something else
        _check_version(directory, saved, earlier)
        named = {str(entry["file"]) for entry in saved.get("files", {}).values()}
    _remove_others(directory, named)  # interrupted saves may have filled the disk
    known = _known_arrays(directory, earlier)
    entries, arrays = {}, {}
    try:
        for name, array in _named_arrays(segments):
            known_array, entry = known.get(name, (None, None))
            is_known = known_array is array and entry is not None and entry["file"] in named
            if entry is None or not is_known or not (directory / entry["file"]).exists():
                entry = _write_array(directory, name, array)
            entries[name], arrays[name] = entry, (array, entry)
        meta = {"format": _format(num_bits), "num_bits": num_bits, "files": entries}
        _write_meta(directory, meta)
    except BaseException:
        if not _is_saved(directory, entries):
            _remove_others(directory, named)
        raise
    _remove_others(directory, {entry["file"] for entry in entries.values()})
    mapped = {
        name: file
        for name, file in (earlier.mapped if earlier else {}).items()
        if name in known and known[name][0] is arrays[name][0]
    }
    return SavedState(directory.resolve(), arrays, _digest(meta), mapped)


def _check_version(directory: Path, saved: dict, earlier: SavedState | None) -> None:
    """Raises ValueError if a directory has another state than the earlier one.

    The changes of the process that saved it would be lost.
    """
    if earlier is None or earlier.directory != directory.resolve():
        return  # a new index replaces the one in the directory
    meta = {name: value for name, value in saved.items() if name != "checksum"}
    if _digest(meta) != earlier.version:
        raise ValueError(
            f"{directory} was saved by another process after this index was opened; open it again, "
            "repeat the changes and save it"
        )


def _is_saved(directory: Path, entries: dict) -> bool:
    """Returns True if meta.json already names the given files."""
    try:
        return _read_meta(directory)["files"] == entries
    except ValueError:
        return False


def load(
    directory: Path, verify: bool, earlier: SavedState | None
) -> tuple[int, Segments, SavedState]:
    """Returns the code length and the arrays of a saved index, mapped into memory.

    Args:
      directory: Where the index was saved.
      verify: Whether to compare every file with its checksum.
      earlier: An earlier state. Its arrays are used again if they have not changed.

    Raises:
      ValueError: A file is missing, damaged or not part of an index; the message names it.
    """
    known = _known_arrays(directory, earlier)
    while True:
        meta = _read_meta(directory)
        arrays: dict[str, np.ndarray] = {}
        mapped: dict[str, MappedFile] = {}
        try:
            for name, entry in meta["files"].items():
                if name in known and known[name][1] == entry:
                    arrays[name] = known[name][0]
                    file = earlier.mapped.get(name) if earlier else None
                else:
                    arrays[name], file = _open_array(directory, name, entry, verify)
                if file:
                    mapped[name] = file
            break
        except FileNotFoundError as error:
            if _read_meta(directory) == meta:
                raise ValueError(f"{error.filename} is missing; save the index again") from None
            # Another process saved the index between the two reads: try again.
    words = num_words(meta["num_bits"])
    for name, array in arrays.items() if words > 1 else ():
        arrays[name] = _in_words(directory, name, array, words)
    segments = Segments(
        *(
            Segment(*(arrays[f"{segment}-{field}"] for field in Segment._fields))
            for segment in Segments._fields
        )
    )
    for segment in segments:
        _check_shapes(directory, segment, meta["num_bits"])
    entries = {name: (arrays[name], entry) for name, entry in meta["files"].items()}
    state = SavedState(directory.resolve(), entries, _digest(meta), mapped)
    return meta["num_bits"], segments, state


def version_of(directory: Path) -> str:
    """Returns the version of the state that is saved in a directory."""
    return _digest(_read_meta(directory))


@contextlib.contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Keeps other processes from writing to the directory."""
    with locks.locked(directory):
        yield


def _known_arrays(
    directory: Path, earlier: SavedState | None
) -> dict[str, tuple[np.ndarray, dict]]:
    same = earlier is not None and earlier.directory == directory.resolve()
    return earlier.arrays if earlier is not None and same else {}


def _named_arrays(segments: Segments) -> Iterator[tuple[str, np.ndarray]]:
    for name, segment in zip(Segments._fields, segments, strict=True):
        for field, array in zip(Segment._fields, segment, strict=True):
            yield f"{name}-{field}", array


def _sync_directory(directory: Path) -> None:
    if os.name == "nt":  # Windows cannot open a directory
        return
    handle = os.open(directory, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _checksum(raw: np.ndarray) -> str:
    whole = len(raw) // 8 * 8
    tail = np.zeros(8, np.uint8)
    tail[: len(raw) - whole] = raw[whole:]
    value = checksum_kernel.checksum(raw[:whole].view(np.uint64))
    return f"{value:016x}-{tail.tobytes().hex()}"


def _write_array(directory: Path, name: str, array: np.ndarray) -> dict[str, Any]:
    """Writes an array under a new name and flushes it to disk; returns its `meta.json` entry."""
    path = directory / f"{name}-{secrets.token_hex(8)}.npy"
    with path.open("xb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    raw = np.asarray(np.memmap(path, np.uint8, "c"))
    return {"file": path.name, "bytes": len(raw), "checksum": _checksum(raw)}


def _digest(meta: dict) -> str:
    return hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write_meta(directory: Path, meta: dict) -> None:
    """Replaces the meta file. From then on the new state is the saved one."""
    path = directory / "meta.json.new"
    with path.open("w") as file:
        json.dump({**meta, "checksum": _digest(meta)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(directory)
    path.replace(directory / "meta.json")
    _sync_directory(directory)


def _read_meta(directory: Path, any_version: bool = False) -> dict[str, Any]:
    path = directory / "meta.json"
    try:
        meta = json.loads(path.read_bytes())
        version = meta["format"]
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; expected a directory written by save"
        ) from None
    except (ValueError, TypeError, LookupError):
        raise ValueError(
            f"{path} is damaged or does not belong to an index; save the index again"
        ) from None
    if any_version and str(version).startswith("mch-index/"):
        return meta
    if version not in (INDEX_FORMAT, LONG_FORMAT):
        raise ValueError(
            f"{path} is of format {version!r}, expected {INDEX_FORMAT!r} or {LONG_FORMAT!r}"
        )
    if meta.pop("checksum", None) != _digest(meta):
        raise ValueError(f"{path} is damaged: its checksum differs; save the index again")
    if not _is_complete(meta):
        raise ValueError(f"{path} lacks entries that save writes; save the index again")
    return meta


def _format(num_bits: int) -> str:
    """Returns the format in which an index of this code length is saved."""
    return INDEX_FORMAT if num_bits <= MAX_BITS else LONG_FORMAT


def _in_words(directory: Path, name: str, array: np.ndarray, words: int) -> np.ndarray:
    """Returns an array in the shape that it has for codes of several words.

    Raises:
      ValueError: Its size is no multiple of that of a code.
    """
    shape = {"keys": (words, BLOCK_ROWS), "pivots": (words,)}.get(name.split("-")[1])
    if shape is None or array.ndim > 1:  # one known from an earlier state has its shape
        return array
    if array.size % np.prod(shape):
        raise ValueError(f"{directory}: the files do not belong together; save the index again")
    return array.reshape(-1, *shape)


def _is_complete(meta: dict) -> bool:
    """Returns whether a meta file has all that opening needs, with files in its own directory."""
    num_bits, files = meta.get("num_bits"), meta.get("files")
    names = {f"{segment}-{field}" for segment in Segments._fields for field in Segment._fields}
    return (
        type(num_bits) is int
        and 1 <= num_bits <= MAX_LONG_BITS
        and meta["format"] == _format(num_bits)
        and isinstance(files, dict)
        and files.keys() == names
        and all(
            isinstance(entry, dict)
            and type(entry.get("bytes")) is int
            and isinstance(entry.get("checksum"), str)
            and _ARRAY_FILE.fullmatch(str(entry.get("file")))
            for entry in files.values()
        )
    )


def _open_array(
    directory: Path, name: str, entry: dict, verify: bool
) -> tuple[np.ndarray, MappedFile | None]:
    """Returns the array of a file and, if it is large enough to be mapped into memory, the map.

    The mapping is copy-on-write, because kernels are compiled for arrays that can be written.
    """
    path, dtype = directory / entry["file"], np.dtype(DTYPES[name.split("-")[1]])
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise ValueError(
            f"{path} has {size} bytes, expected {entry['bytes']}; save the index again"
        )
    file = MappedFile(path, entry["checksum"]) if size >= SMALLEST_MAP else None
    raw = file.raw if file else np.fromfile(path, np.uint8)
    if len(raw) != size or (verify and _checksum(raw) != entry["checksum"]):
        raise ValueError(f"{path} is damaged: its checksum differs; save the index again")
    start = 10 + int(raw[8]) + 256 * int(raw[9])  # the .npy header: magic, version, length, text
    if (size - start) % dtype.itemsize or start % 64:
        raise ValueError(f"{path} is damaged: its header differs; save the index again")
    return raw[start:].view(dtype), file


def _check_shapes(directory: Path, segment: Segment, num_bits: int) -> None:
    """Refuses arrays that do not fit each other, which a checksum per file cannot show."""
    keys, offsets, items, pivots, rings, table, _ = segment
    num_keys = len(offsets) - 1
    num_rows = num_keys if keys.ndim == 1 else -(-num_keys // BLOCK_ROWS)
    fits = (
        len(keys) == num_rows
        and offsets[-1] == len(items)
        and len(rings) == len(pivots) * (num_bits + 1) + 1
        and rings[-1] == num_keys
        and len(table) == num_slots(num_keys, num_bits)
    )
    if not fits:
        raise ValueError(f"{directory}: the files do not belong together; save the index again")


def _remove_others(directory: Path, names: set[str]) -> None:
    """Deletes the arrays of earlier states and of interrupted saves."""
    for path in directory.iterdir():
        is_array = _ARRAY_FILE.fullmatch(path.name)
        if (is_array and path.name not in names) or path.name == "meta.json.new":
            with contextlib.suppress(PermissionError):  # Windows keeps files that are mapped
                path.unlink(missing_ok=True)
