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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mch_jax.files import json_values, npz, processes
from mch_jax.files.npz import Field
from mch_jax.files.regular import Refused, read_bounded

MAX_JSON = 2**28  # bytes of a JSON file

# Names of temporary files: of whole_file, of whole_file before it had random names, of Orbax.
_TEMPORARY = re.compile(
    r"\..+\.new-[0-9a-f]{16}(\.[^.]*)?"
    r"|\.(audit|config|encoder|metrics|results|query|database|train|regions|index"
    r"|(queries|database)-\d+)-\d+\.[a-z]+"
    r"|.+\.orbax-checkpoint-tmp(-.*)?"
)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str], durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path that is renamed to `path` if the block ends without an error.

    Readers see either the old file or the whole new one. In a process that does not write files
    (`processes.is_writer`) the temporary file is deleted instead.

    Args:
      path: Path of the file.
      durable: Whether to wait until the disk has the file, some milliseconds, so that the same is
        true after a power failure. Otherwise one can leave a file that is empty or cut.
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
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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


def read_json(
    path: str | os.PathLike[str], remedy: str, expected: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Args:
      path: Path of the file.
      remedy: What the user can do about a missing or damaged file, for the error message.
      expected: What it has to hold, as for `json_values.check`. Defaults to any object.

    Raises:
      ValueError: The file is missing or damaged, or does not contain what is expected.
    """
    path = Path(path)
    try:
        value = json_values.parse(read_bounded(path, MAX_JSON).decode())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and {remedy}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object; delete it and {remedy}")
    try:
        json_values.check(value, expected or {})
    except Refused as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and {remedy}") from None
    return value


def read_json_lines(
    path: str | os.PathLike[str], remedy: str, expected: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Returns the objects in a file of one JSON object per line.

    Args:
      path: Path of the file.
      remedy: What the user can do about a damaged file, for the error message.
      expected: What each object has to hold, as for `json_values.check`.

    Raises:
      ValueError: A line does not contain what is expected.
    """
    rows: list[dict[str, Any]] = []
    try:
        for line in read_bounded(path, MAX_JSON).decode().split("\n"):
            if line:
                row = json_values.parse(line)
                json_values.check(row, expected)
                rows.append(row)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged (line {len(rows) + 1}: {first_line(error)}); delete it and {remedy}"
        ) from None
    return rows


def read_npz(
    path: str | os.PathLike[str], remedy: str, fields: Mapping[str, Field] | None = None
) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz that this package wrote.

    Args:
      path: Path of the file.
      remedy: What the user can do about a missing or damaged file, for the error message.
      fields: What each array has to be. Defaults to any arrays of finite numbers or text.

    Raises:
      ValueError: The file is missing or damaged, or an array is another one than expected.
    """
    try:
        return npz.read(path, fields)
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
        arrays = npz.read(path)
        settings = json_values.parse(str(arrays.pop("settings")))
        if not isinstance(settings, dict):
            raise Refused("settings is no JSON object")
        for name, array in arrays.items():
            *parents, leaf = name.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            if leaf in node or not isinstance(node, dict):
                raise Refused(f"two arrays {name!r}")
            node[leaf] = array
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; run the encode stage first") from None
    except Exception as error:  # noqa: BLE001 - a damaged archive can raise anything
        raise ValueError(
            f"{path} cannot be read ({first_line(error)}); run the encode stage again"
        ) from None
    return tree, settings
