"""Places of photos without labels: a folder, tar archives, or a list of files.

Nothing is unpacked, and no name leads outside its place: a photo in an archive is a span of the
archive's bytes, a file that lies elsewhere by way of a link is refused.
"""

import json
import os
import pathlib
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from mch_jax.data import photos, tables

SUFFIXES = (
    ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip


class Photo(NamedTuple):
    """Where the bytes of one photo are.

    Attributes:
      id: its name, which occurs once in a place.
      root: the folder that `id` is relative to or, where `offset` is given, the archive.
      offset: of its first byte in the archive; -1 for a file of its own.
      length: in bytes; -1 for a file of its own.
    """

    id: str
    root: str
    offset: int = -1
    length: int = -1


def find(place: str | os.PathLike[str]) -> list[Photo]:
    """Returns the photos of a place, in an order that is the same everywhere.

    Args:
      place: a folder, whose photos and uncompressed tars are taken with those of its subfolders; a
        tar; or a text file with a path a line, relative to the folder of that file. Files count as
        photos by their suffix, hidden ones do not.

    Raises:
      ValueError: there is no such place or no photo in it, an archive does not open, or a list
        names a path outside its folder or the same path twice.
    """
    path = pathlib.Path(place)
    if path.is_dir():
        found = list(_of_folder(path.resolve()))
    elif path.suffix == ".tar":
        found = list(_of_tar(path.resolve()))
    elif path.is_file():
        found = _of_list(path)
    else:
        raise ValueError(
            f"'{path}' does not exist; expected a folder of photos, a .tar or a list of files"
        )
    if not found:
        raise ValueError(
            f"'{path}' holds no photo; expected files that end in {', '.join(SUFFIXES)}"
        )
    return found


def _is_photo(name: str) -> bool:
    path = pathlib.PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _of_folder(root: pathlib.Path) -> Iterator[Photo]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(files):
            path = pathlib.Path(folder, file)
            name = path.relative_to(root).as_posix()
            if _is_photo(name):
                yield Photo(name, str(root))
            elif path.suffix == ".tar" and not file.startswith("."):
                for photo in _of_tar(path):
                    yield photo._replace(id=f"{name}/{photo.id}")


def _of_tar(path: pathlib.Path) -> Iterator[Photo]:
    try:
        with tarfile.open(path, "r:") as tar:
            # Of equal names the last one counts, as when a tar is unpacked.
            members = {m.name: m for m in tar if m.isfile() and _is_photo(m.name)}
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"'{path}' is not a whole, uncompressed tar: {error}") from error
    for member in members.values():
        yield Photo(member.name, str(path), member.offset_data, member.size)


def _of_list(path: pathlib.Path) -> list[Photo]:
    root = str(path.parent.resolve())
    names: dict[str, int] = {}
    for number, line in enumerate(tables.read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name = tables.inside(line.strip(), f"'{path}' line {number}")
        if name in names:
            raise ValueError(
                f"'{path}' line {number}: '{name}' is in line {names[name]} already; "
                "list each photo once"
            )
        names[name] = number
    return [Photo(name, root) for name in names]


def decode(photo: Photo) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a photo's pixels, upright.

    Raises:
      ValueError: it does not open or decode, or its name leads outside its place.
    """
    try:
        photo.id.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{json.dumps(photo.id)} is not a UTF-8 name; rename the file") from None
    if photo.offset >= 0:
        tables.inside(photo.id, f"'{photo.root}'")
        return photos.decode(_span(photo), photo.id)
    root = pathlib.Path(photo.root)
    if not (root / photo.id).resolve().is_relative_to(root):
        raise ValueError(f"'{photo.id}' is a link that leads outside '{root}'; copy the file there")
    return photos.read_file(root, np.array([photo.id]), 0)


def _span(photo: Photo) -> bytes:
    """Returns a photo's bytes from its archive; no file position is shared."""
    try:
        file = os.open(photo.root, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"'{photo.root}' does not open: {error.strerror}") from None
    try:
        return os.pread(file, photo.length, photo.offset)
    finally:
        os.close(file)
