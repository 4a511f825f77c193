"""Readers of label files: labels.csv, and list files with lines `path l1 ... lN`."""

import collections
import csv
import functools
import io
import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from mch_jax.data.dataset import SPLITS
from mch_jax.files.regular import Refused, read_bounded

# Columns of labels.csv that are neither names, splits nor classes.
_EXTRA_COLUMNS = ("width", "height", "caption")
_LISTS = (("query.txt", "test.txt"), ("database.txt",), ("train.txt",))


MAX_TEXT = 2**30  # bytes of a label file
MAX_NAME, MAX_DEPTH = 1024, 100  # characters of a name, folders in it


def is_too_long(name: str) -> bool:
    """Returns True for a name with more than MAX_NAME characters or MAX_DEPTH folders."""
    return len(name) > MAX_NAME or name.count("/") > MAX_DEPTH


def _check_length(name: str, source: str) -> None:
    if is_too_long(name):
        raise ValueError(
            f"{source}: the name {name[:40]!r}... has {len(name):,} characters in "
            f"{name.count('/'):,} folders, expected at most {MAX_NAME:,} and {MAX_DEPTH}"
        )


def relative_name(name: str, source: str) -> str:
    """Returns a name as a relative path with forward slashes.

    Args:
      name: The name as written.
      source: Where the name comes from, for error messages.

    Raises:
      ValueError: The name is too long, leads outside its folder or holds a control character.
    """
    _check_length(name, source)
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise ValueError(f"{source}: the name {name!r} holds a control character; rename the file")
    path = pathlib.PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"{source}: {name!r} leads outside the data folder; "
            "names must be relative and without '..'"
        )
    return str(path)


def read_text(path: pathlib.Path) -> str:
    """Returns the content of a UTF-8 text file without a byte order mark.

    Raises:
      ValueError: The file does not open or is not UTF-8.
    """
    try:
        data = read_bounded(path, MAX_TEXT)
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8 text: {error}; save it as UTF-8") from error
    except (OSError, Refused) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"'{path}' does not open: {reason}") from error


def multi_hot(values: list[list[str]], source: str, first_line: int) -> UInt8[np.ndarray, "n c"]:
    """Returns label columns as an array.

    Args:
      values: One row of texts per photo, each "0" or "1".
      source: Where the rows come from, for error messages.
      first_line: Line number of the first row.

    Raises:
      ValueError: A value is neither 0 nor 1; the error names its line.
    """
    for line, row in enumerate(values, first_line):
        bad = next((value for value in row if value not in ("0", "1")), None)
        if bad is not None:
            raise ValueError(f"{source} line {line}: label {bad!r}, expected 0 or 1")
    return np.array(values, np.uint8)


def read_rows(path: pathlib.Path) -> list[list[str]]:
    """Returns the rows of a table with columns separated by commas, without empty lines.

    Raises:
      ValueError: The file does not open or is not such a table.
    """
    try:
        return [row for row in csv.reader(io.StringIO(read_text(path))) if row]
    except csv.Error as error:
        raise ValueError(
            f"'{path}' is not a table: {error}; expected one line per photo with columns "
            "separated by commas"
        ) from error


def check_widths(path: pathlib.Path, header: list[str], lines: list[list[str]]) -> None:
    """Raises a ValueError with the number of the first line that is not as wide as the header."""
    for line, row in enumerate(lines, 2):
        if len(row) != len(header):
            raise ValueError(
                f"'{path}' line {line} has {len(row)} columns, expected {len(header)} "
                "as in the header"
            )


def read_table(
    path: pathlib.Path,
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray, list[str] | None]:
    """Reads labels.csv.

    Returns:
      Names of the photos, names of the classes, labels [n, classes], and the split of each photo
      or None if there is no such column.

    Raises:
      ValueError: The file is not such a table.
    """
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"'{path}' is empty; expected a header file,split,CLASS,...")
    header, *lines = rows
    classes = tuple(c for c in header if c not in ("file", "split", *_EXTRA_COLUMNS))
    if header[0] != "file" or not classes or len(set(header)) < len(header):
        raise ValueError(
            f"'{path}' starts with {','.join(header)[:80]!r}; expected a header "
            "file,split,CLASS,... (split may be left out) with different names"
        )
    if not lines:
        raise ValueError(f"'{path}' lists no photo; expected one line per photo below the header")
    check_widths(path, header, lines)
    columns = [header.index(name) for name in classes]
    labels = multi_hot([[row[i] for i in columns] for row in lines], f"'{path}'", 2)
    ids = np.array([relative_name(row[0], f"'{path}'") for row in lines])
    if "split" not in header:
        return ids, classes, labels, None
    splits = [row[header.index("split")] for row in lines]
    wrong = next((split for split in splits if split not in SPLITS), None)
    if wrong is not None:
        raise ValueError(f"'{path}' names split {wrong!r}, expected one of {', '.join(SPLITS)}")
    return ids, classes, labels, splits


def below_root(root: pathlib.Path) -> Callable[[str, str], str]:
    """Returns a function that converts the path in a list to a name below `root`.

    Published lists contain absolute paths of their author's machine. The function returns the
    longest suffix of the path whose folder exists below `root`, or else the file name alone. Its
    arguments are those of `relative_name`.
    """

    @functools.cache
    def is_folder(part: str) -> bool:
        return (root / part).is_dir()

    @functools.cache
    def folder(parent: pathlib.PurePosixPath) -> pathlib.PurePosixPath:
        parts = parent.parts[1:] if parent.is_absolute() else parent.parts
        for start, part in enumerate(parts):
            if is_folder(part) and (root / (end := pathlib.PurePosixPath(*parts[start:]))).is_dir():
                return end
        return pathlib.PurePosixPath()

    def name(written: str, source: str) -> str:
        _check_length(written, source)
        path = pathlib.PurePosixPath(written)
        if path.is_absolute() and path.is_relative_to(root.resolve()):
            path = path.relative_to(root.resolve())
        if ".." not in path.parts and path.parts:
            path = folder(path.parent) / path.name
        return relative_name(str(path), source)

    return name


def read_list(path: pathlib.Path, name: Callable[[str, str], str]) -> dict[str, np.ndarray]:
    """Reads a list file with lines `path l1 ... lN`. A path may contain spaces.

    Args:
      path: Path of the list.
      name: Function that converts a path in the list and the list's name to a photo's name.

    Returns:
      Labels [classes] by the photo's name.

    Raises:
      ValueError: The file is not such a list or names a photo twice.
    """
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"'{path}' lists no photo; expected lines 'path l1 ... lN'")
    tokens = lines[0].split()
    width = next((i for i, token in enumerate(reversed(tokens)) if token not in ("0", "1")), 0)
    if not width:
        raise ValueError(f"'{path}' line 1: {lines[0][:80]!r}, expected 'path l1 ... lN'")
    rows = [line.strip().rsplit(maxsplit=width) for line in lines]
    for line, row in enumerate(rows, 1):
        # If a line has one label too many, the path ends with it.
        if len(row) != width + 1 or row[0].split()[-1] in ("0", "1"):
            raise ValueError(
                f"'{path}' line {line}: {lines[line - 1][:80]!r}, expected a path and "
                f"{width} labels as in line 1"
            )
    labels = multi_hot([row[1:] for row in rows], f"'{path}'", 1)
    names = [name(row[0], f"'{path}'") for row in rows]
    if len(set(names)) < len(names):
        twice = collections.Counter(names).most_common(1)[0][0]
        raise ValueError(f"'{path}' lists {twice!r} twice; remove one of the lines")
    return dict(zip(names, labels, strict=True))


def has_list(root: pathlib.Path) -> bool:
    """Returns True if a folder has any of the list files that `read_lists` reads."""
    return any((root / name).exists() for names in _LISTS for name in names)


def read_lists(
    root: pathlib.Path,
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray, dict[str, np.ndarray]]:
    """Reads query.txt (or test.txt), database.txt and train.txt, the list files of the literature.

    Returns:
      Names of the photos, names of the classes, labels [n, classes], and the rows of each split.

    Raises:
      ValueError: A list is missing or damaged, or two lists give a photo different labels.
    """
    name = below_root(root)
    labels: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    for split, choices in zip(SPLITS, _LISTS, strict=True):
        paths = [root / choice for choice in choices if (root / choice).is_file()]
        if not paths:
            raise ValueError(
                f"'{root}' has neither labels.csv nor all of query.txt, database.txt, train.txt "
                f"({choices[0]} is missing); docs/own-photos.md describes both"
            )
        listed = read_list(paths[0], name)
        for file, own in listed.items():
            if not np.array_equal(labels.setdefault(file, own), own):
                raise ValueError(
                    f"'{paths[0]}' gives {file!r} other labels than an earlier list; "
                    "expected the same labels in all lists"
                )
        order = {file: row for row, file in enumerate(labels)}
        rows[split] = np.array([order[file] for file in listed], np.int64)
    values = list(labels.values())
    if len({len(x) for x in values}) > 1:
        raise ValueError(
            f"the lists in '{root}' have different numbers of labels per line; "
            "expected the same number everywhere"
        )
    classes = tuple(f"class {i}" for i in range(len(values[0])))
    if (root / "classes.txt").is_file():
        classes = tuple(read_text(root / "classes.txt").split("\n"))
        classes = tuple(c.strip() for c in classes if c.strip())
    return np.array(list(labels)), classes, np.stack(values), rows
