"""JSON files and array files that are written completely or not at all.

This module imports JAX only in `save_arrays`, so that a search in a codes file starts quickly.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mch_jax.files import processes

# Names of temporary files: of whole_file, of whole_file before it had random names, of Orbax.
_TEMPORARY = re.compile(
    r"\..+\.new-[0-9a-f]{16}(\.[^.]*)?"
    r"|\.(audit|config|encoder|metrics|results|query|database|train|regions|index"
    r"|(queries|database)-\d+)-\d+\.[a-z]+"
    r"|.+\.orbax-checkpoint-tmp(-.*)?"
)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` if the block ends without an error.

    Readers see either the old file or the whole new one, even after a power failure. In a process
    that does not write files (`processes.is_writer`) the temporary file is deleted instead.
    """
    path = Path(path)
    if not processes.is_writer():
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory) / path.name
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, because processes on several hosts can have the same number. The suffix comes last,
    # because some writers append it to a name that does not end with it.
    temporary = path.with_name(f".{path.stem}.new-{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


MAX_RATIO, FREE_BYTES = 256, 2**26  # of unpacked bytes to the file's; small files may have more


def check_size(archive: zipfile.ZipFile) -> None:
    """Raises ValueError if a zip declares far more bytes than arrays compress to.

    Deflate reaches a ratio of 1,032, so that a file of 3 MiB could fill 3 GiB of memory.
    """
    members = archive.infolist()
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members)
    if unpacked > max(FREE_BYTES, MAX_RATIO * packed):
        raise ValueError(
            f"it declares {unpacked:,} bytes in {packed:,}, more than {MAX_RATIO} times as many"
        )


def read_zip(
    path: str | os.PathLike[str], known: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz, whose declared sizes are checked before anything is read.

    Args:
      path: Path of the file.
      known: Names that the arrays may have. Defaults to any.

    Raises:
      ValueError: An array has another name, or the arrays would take far more memory than the file.
      OSError: The file cannot be opened. Damaged files may raise any other exception, too.
    """
    # np.load would leave a damaged file open, so the file is opened here.
    with open(path, "rb") as stream:
        with zipfile.ZipFile(stream) as archive:
            check_size(archive)
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        unknown = sorted(set(names) - set(known)) if known is not None else []
        if unknown:
            raise ValueError(f"unknown array {unknown[0]!r}")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as arrays:
            return dict(arrays)


def remove_temporary(directory: str | os.PathLike[str]) -> None:
    """Removes what killed processes left behind in a directory, which no process may write to.

    Args:
      directory: Directory of files that `whole_file` or Orbax wrote. It need not exist.
    """
    directory = Path(directory)
    for path in list(directory.iterdir()) if directory.is_dir() else []:
        if not _TEMPORARY.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a JSON file, completely or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
      path: Path of the file.
      remedy: What the user can do about a missing or damaged file, for the error message.

    Raises:
      ValueError: The file is missing or does not contain a JSON object.
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
    """Returns the arrays of an .npz that this package wrote.

    Args:
      path: Path of the file.
      remedy: What the user can do about a missing or damaged file, for the error message.

    Raises:
      ValueError: The file is missing or damaged.
    """
    try:
        return read_zip(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {remedy}") from None
    except Exception as error:  # noqa: BLE001 - a damaged archive can raise anything
        raise ValueError(
            f"{path} is damaged ({first_line(error)}); delete it and {remedy}"
        ) from None


def save_arrays(path: str | os.PathLike[str], tree: Mapping[str, Any], settings: Any) -> None:
    """Writes arrays and settings to one .npz, completely or not at all.

    Args:
      path: Path of the file.
      tree: Nested dicts of arrays.
      settings: Any value that JSON can represent.
    """
    import jax

    arrays: dict[str, Any] = dict(_leaves(jax.tree.map(np.asarray, tree)))
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, settings=np.str_(json.dumps(settings)), **arrays)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of nested dicts. The name of an array is its keys, joined by slashes."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the tree of arrays and the settings that `save_arrays` wrote.

    Raises:
      ValueError: The file is missing or damaged.
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
        raise ValueError(
            f"{path} cannot be read ({first_line(error)}); run the encode stage again"
        ) from None
    return tree, settings
