"""Arrays of .npz files, checked against what the file declares before anything is allocated.

A few bytes of a compressed file can declare gigabytes. Members that the caller does not know,
dtypes other than plain numbers and text, and declared sizes that do not fit the file are therefore
refused before an array is read, and ranges and finiteness are checked afterwards.
"""

import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mch_jax.files.regular import Refused, open_regular

SMALL = 2**28  # bytes of arrays that a file of any size may hold
RATIO = 256  # bytes of arrays per byte that a larger file may hold; Deflate reaches 1,032
_MAX_HEADER = 10_000  # bytes of the header of one array


class Field(NamedTuple):
    """What an array of a file has to be.

    Attributes:
      dtype: A dtype such as "u1", or a kind: "f" for any float, "i" for signed integers, "U" for
        text.
      shape: Length of each axis. Axes of the same name have the same length in all arrays. None for
        any shape.
      low: Smallest value.
      high: Largest value. Floats have to be finite in any case.
      is_optional: Whether the array may be missing.
    """

    dtype: str
    shape: tuple[int | str, ...] | None = None
    low: float = -math.inf
    high: float = math.inf
    is_optional: bool = False


def most_bytes(size: int) -> int:
    """Returns how many bytes of arrays a file of `size` bytes may declare."""
    return max(SMALL, RATIO * size)


def read(
    path: str | os.PathLike[str], fields: Mapping[str, Field] | None = None
) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file.

    Args:
      path: Path of the file.
      fields: What each array has to be. Defaults to any arrays of finite numbers or text.

    Raises:
      OSError: The file does not open.
      ValueError: An array is missing, unknown or another one than declared. Damaged zips also raise
        other errors.
    """
    with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
        members = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in members:
                raise Refused(f"two arrays {name!r}")
            if fields is not None and name not in fields:
                raise Refused(f"unknown array {name[:80]!r}")
            members[name] = info
        size = os.fstat(stream.fileno()).st_size
        declared = sum(info.file_size for info in members.values())
        if declared > most_bytes(size):
            raise Refused(
                f"it declares {declared:,} bytes of arrays, expected at most "
                f"{most_bytes(size):,} in a file of {size:,} bytes"
            )
        headers = {name: _header(archive, name, info) for name, info in members.items()}
        if fields is not None:
            _check_headers(headers, fields)
        arrays = {}
        for name, info in members.items():
            with archive.open(info) as member:
                arrays[name] = np.lib.format.read_array(member, max_header_size=_MAX_HEADER)
            _check_values(name, arrays[name], (fields or {}).get(name))
    return arrays


def _header(
    archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype]:
    """Returns the shape and the dtype that a member declares, which have to fit its length."""
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise Refused(f"{name} has the version {version} of the .npy format")
        shape, _, dtype = read_header(member, max_header_size=_MAX_HEADER)
        begin = member.tell()
    if dtype.kind not in "biufcU":
        raise Refused(f"{name} is {dtype}, expected plain numbers or text")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != info.file_size - begin:
        raise Refused(f"{name} declares {dtype} {shape}, which is not what the file holds")
    return shape, dtype


def _check_headers(
    headers: Mapping[str, tuple[tuple[int, ...], np.dtype]], fields: Mapping[str, Field]
) -> None:
    """Raises Refused unless all arrays are there, with the dtypes and shapes expected."""
    axes: dict[str, int] = {}
    for name, field in fields.items():
        if name not in headers:
            if field.is_optional:
                continue
            raise Refused(f"no array {name!r}")
        shape, dtype = headers[name]
        is_kind = len(field.dtype) == 1
        if (dtype.kind != field.dtype) if is_kind else (dtype != np.dtype(field.dtype)):
            kinds = {"f": "floats", "i": "integers", "U": "text"}
            expected = kinds[field.dtype] if is_kind else np.dtype(field.dtype)
            raise Refused(f"{name} is {dtype}, expected {expected}")
        if field.shape is None:
            continue
        expected = [axes.get(x, x) if isinstance(x, str) else x for x in field.shape]
        fits = len(expected) == len(shape) and all(
            isinstance(x, str) or x == length for x, length in zip(expected, shape, strict=True)
        )
        if not fits:
            text = ", ".join(map(str, expected))
            raise Refused(f"{name} has the shape {shape}, expected [{text}]")
        axes |= {
            x: length for x, length in zip(field.shape, shape, strict=True) if isinstance(x, str)
        }


def _check_values(name: str, array: np.ndarray, field: Field | None) -> None:
    """Raises Refused if a number is not finite or out of range."""
    if array.dtype.kind == "c":
        raise Refused(f"{name} is {array.dtype}, expected real numbers")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Refused(f"{name} holds a value that is not finite")
    if field is None or not array.size or array.dtype.kind == "U":
        return
    low, high = array.min(), array.max()
    if low < field.low or high > field.high:
        raise Refused(
            f"{name} ranges from {low} to {high}, expected {field.low:g} to {field.high:g}"
        )


def check_declared(path: Path) -> None:
    """Raises ValueError if `read` would refuse a file for the bytes that it declares."""
    with zipfile.ZipFile(path) as archive:
        declared = sum(info.file_size for info in archive.infolist())
    most = most_bytes(path.stat().st_size)
    if declared > most:
        raise ValueError(
            f"{path.name} would hold {declared:,} bytes of arrays in a file that may hold "
            f"{most:,}: names of very different lengths take as much space as the longest each; "
            "shorten the longest names"
        )
