"""Files below a folder and inside archives there, found by name; nothing is unpacked."""

import os
import pathlib
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from mch_jax.data.tables import inside

# A member that claims to be longer, text or photo, is refused before it is inflated.
MAX_MEMBER = 2**31 - 1
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


class Place(NamedTuple):
    """Where a file's bytes are.

    Attributes:
      archive: number of the archive, -1 for a file on disk.
      offset: of the first byte in the archive.
      stored: number of bytes there.
      inflated: number of bytes once inflated; 0 where they are stored as they are.
    """

    archive: int
    offset: int
    stored: int
    inflated: int


def tar_members(path: pathlib.Path, number: int = 0) -> dict[str, Place]:
    """Returns the files of an uncompressed tar by name."""
    try:
        with tarfile.open(path, "r:") as tar:
            return {m.name: Place(number, m.offset_data, m.size, 0) for m in tar if m.isfile()}
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"'{path}' is not a whole, uncompressed tar: {error}") from error


def zip_members(path: pathlib.Path, number: int = 0) -> dict[str, Place]:
    """Returns the files of a zip by name, those that are stored or deflated, no links.

    A member whose name leads out of the archive's folder is passed over.
    """
    members = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for info in archive.infolist():
                is_plain = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                is_link = stat.S_ISLNK(info.external_attr >> 16)
                name = pathlib.PurePosixPath(info.filename)
                if name.is_absolute() or ".." in name.parts:
                    continue
                if info.is_dir() or is_link or not is_plain or info.flag_bits & 1:
                    continue
                # The bytes begin behind the local header, whose extra field is one of its own.
                file.seek(info.header_offset)
                header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                if header[0] != b"PK\x03\x04":
                    raise zipfile.BadZipFile(f"no file begins where '{info.filename}' should")
                offset = info.header_offset + _LOCAL_HEADER.size + header[-2] + header[-1]
                is_stored = info.compress_type == zipfile.ZIP_STORED
                members[info.filename] = Place(
                    number,
                    offset,
                    info.compress_size if info.file_size else 0,
                    0 if is_stored else info.file_size,
                )
    except (zipfile.BadZipFile, struct.error, OSError, NotImplementedError) as error:
        raise ValueError(
            f"'{path}' is not a whole zip: {error}; fetch it again and compare its checksum"
        ) from error
    return members


def read_member(
    path: pathlib.Path, offset: int, stored: int, inflated: int, name: str = "file"
) -> bytes:
    """Returns a file's bytes from an archive; no file position is shared among threads.

    Args:
      path: of the archive.
      offset: as in Place.
      stored: as in Place.
      inflated: as in Place.
      name: what the error calls the file.

    Raises:
      ValueError: the archive does not open, or the bytes there do not inflate.
    """
    if max(stored, inflated) > MAX_MEMBER:
        raise ValueError(f"'{name}' in '{path}' has {max(stored, inflated):,} bytes, too many")
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(file, stored, offset)
        finally:
            os.close(file)
        if inflated:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, inflated)
    except (OSError, zlib.error) as error:
        raise ValueError(f"'{name}' in '{path}' does not open: {error}") from error
    if len(data) != (inflated or stored):
        raise ValueError(f"'{name}' in '{path}' is cut off; fetch the archive again")
    return data


class Files:
    """What lies below a root folder, unpacked or in zips there.

    A name is looked for as it is and one folder further down: archives, and the folders that
    people unpack them into, differ in their topmost folder.
    """

    def __init__(self, root: pathlib.Path, archives: Sequence[str]):
        self.root = root.absolute()
        self.archives = [self.root / name for name in archives if (self.root / name).is_file()]
        self._members: dict[str, Place] = {}
        self._listings: dict[str, frozenset[str]] = {}
        for number, path in enumerate(self.archives):
            self._members |= zip_members(path, number)
        tops = {name.partition("/")[0] for name in self._members if "/" in name}
        self._member_tops = ["", *sorted(f"{top}/" for top in tops)]
        folders = sorted(entry.name for entry in os.scandir(self.root) if entry.is_dir())
        self._disk_tops = ["", *(f"{name}/" for name in folders)]

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            try:
                names = frozenset(os.listdir(self.root / folder))
            except OSError:
                names = frozenset()
            self._listings[folder] = names
        return self._listings[folder]

    def find(self, name: str) -> tuple[str, Place] | None:
        """Returns where a file is: its path in the archive or below the root, and its place.

        Raises:
          ValueError: the name, which may come from a list, would lead out of the root.
        """
        name = inside(name, str(self.root))
        for top in self._member_tops:
            if top + name in self._members:
                return top + name, self._members[top + name]
        folder, _, base = name.rpartition("/")
        for top in self._disk_tops:
            if base in self._listing(top + folder):
                return top + name, Place(-1, 0, 0, 0)
        return None

    def find_all(self, names: Sequence[str]) -> tuple[np.ndarray, Int64[np.ndarray, "n 4"]]:
        """Returns paths and places of files; an empty path is of one that was not found."""
        found = [self.find(name) or ("", Place(-1, 0, 0, 0)) for name in names]
        places = np.array([place for _, place in found], np.int64).reshape(-1, 4)
        return np.array([path for path, _ in found]), places

    def read(self, name: str) -> bytes | None:
        """Returns a file's bytes, or None where there is no such file."""
        found = self.find(name)
        if found is None:
            return None
        path, (archive, *place) = found
        if archive >= 0:
            return read_member(self.archives[archive], *place, name)
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise ValueError(f"'{self.root / path}' does not open: {error.strerror}") from error
