"""Sources of photos without labels: a folder, a tar archive, or a list of files.

Nothing is unpacked: a photo in an archive is a span of the archive's bytes. No name leads outside
its source, and a link to a file outside it is refused.
"""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import UInt8

from mch_jax.data import archives, label_files, photos

SUFFIXES = (
    ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip


class Photo(NamedTuple):
    """A photo of a source.

    The plan of an unfinished export stores the four fields as a JSON list.

    Attributes:
      id: Name of the photo, unique in its source.
      root: The folder that `id` is relative to, or the archive that contains the photo.
      offset: Position of the photo's first byte in the archive, or -1 for a file on disk.
      length: Number of bytes in the archive, or -1 for a file on disk.
    """

    id: str
    root: str
    offset: int = -1
    length: int = -1


def find(source: str | os.PathLike[str]) -> list[Photo]:
    """Returns the photos of a source, in an order that does not depend on the machine.

    Args:
      source: One of the following.

        - A folder: the photos in it and in its subfolders, and those in uncompressed tars there.
        - An uncompressed tar.
        - A text file with one path per line, relative to the folder of the text file.

        Photos are recognised by their suffix. Hidden files are skipped.

    Raises:
      ValueError: The source does not exist or contains no photo, an archive does not open, or a
        list has a path outside its folder or the same path twice.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        found = list(_in_folder(path.resolve()))
    elif path.suffix == ".tar":
        found = list(_in_tar(path.resolve()))
    elif path.is_file():
        found = _in_list(path)
    else:
        raise ValueError(
            f"'{path}' does not exist; expected a folder of photos, a .tar or a list of files"
        )
    if not found:
        raise ValueError(
            f"'{path}' holds no photo; expected files that end in {', '.join(SUFFIXES)}"
        )
    return found


def find_files(folder: str | os.PathLike[str]) -> list[Photo]:
    """Returns the photos that are files in a folder or its subfolders; there may be none.

    The order does not depend on the machine. Hidden files are skipped.
    """
    return list(_in_folder(pathlib.Path(folder).resolve(), with_tars=False))


def _is_photo(name: str) -> bool:
    path = pathlib.PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _in_folder(root: pathlib.Path, with_tars: bool = True) -> Iterator[Photo]:
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        if label_files.is_too_long(folder):
            logging.warning("left out: the folder '%s...' is nested too deeply", folder[:80])
            continue
        try:
            with os.scandir(root / folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            logging.warning("left out: the folder '%s': %s", folder[:200], error.strerror)
            continue
        folders = []
        for entry in entries:
            name = f"{folder}{entry.name}"
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):  # links to folders are not followed, as they can form loops
                folders += [] if entry.is_symlink() else [f"{name}/"]
            elif _is_photo(name):
                yield Photo(name, str(root))
            elif with_tars and name.endswith(".tar"):
                for photo in _in_tar(root / name):
                    yield photo._replace(id=f"{name}/{photo.id}")
        waiting += reversed(folders)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _in_tar(path: pathlib.Path) -> Iterator[Photo]:
    for name, span in archives.tar_members(path).items():
        if _is_photo(name):
            yield Photo(name, str(path), span.offset, span.stored)


def _in_list(path: pathlib.Path) -> list[Photo]:
    root = str(path.parent.resolve())
    names: dict[str, int] = {}
    for number, line in enumerate(label_files.read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name = label_files.relative_name(line.strip(), f"'{path}' line {number}")
        if name in names:
            raise ValueError(
                f"'{path}' line {number}: '{name}' is in line {names[name]} already; "
                "list each photo once"
            )
        names[name] = number
    return [Photo(name, root) for name in names]


def content(photo: Photo) -> bytes:
    """Returns the bytes of a photo's file.

    Raises:
      ValueError: The photo does not open, or its name leads outside its source.
    """
    try:
        photo.id.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{json.dumps(photo.id)} is not a UTF-8 name; rename the file") from None
    if photo.offset >= 0:
        label_files.relative_name(photo.id, f"'{photo.root}'")
        span = archives.Span(0, photo.offset, photo.length, 0)
        return archives.read_span(photo.root, span, photo.id, photos.MAX_FILE)
    if label_files.is_too_long(photo.id):
        raise ValueError(f"the name '{photo.id[:80]}...' has {len(photo.id):,} characters")
    root = pathlib.Path(photo.root)
    try:
        target = (root / photo.id).resolve()
    except (OSError, RuntimeError):  # which of them depends on the version of Python
        raise ValueError(f"'{photo.id}' is a loop of links; remove it") from None
    if not target.is_relative_to(root):
        raise ValueError(f"'{photo.id}' is a link that leads outside '{root}'; copy the file there")
    return photos.file_bytes(root, np.array([photo.id]), 0)


def decode(photo: Photo) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the RGB pixels of a photo, rotated according to its EXIF orientation.

    Raises:
      ValueError: The photo does not open or decode, or its name leads outside its source.
    """
    return photos.decode(content(photo), photo.id)


def status(photo: Photo) -> str:
    """Returns the size and times of the file that a photo is in, or "absent"."""
    path = pathlib.Path(photo.root)
    try:
        found = (path if photo.offset >= 0 else path / photo.id).stat()
    except (OSError, ValueError):
        return "absent"
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
