"""Files below a folder and inside archives there, found by name. Nothing is unpacked."""

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

from mch_jax.data.label_files import relative_name
from mch_jax.files.regular import Refused, open_regular, read_bounded

# A member that claims to be longer, text or photo, is refused before it is inflated.
MAX_MEMBER = 2**31 - 1
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


class Span(NamedTuple):
    """The bytes of one file, which may lie inside an archive.

    Attributes:
      archive: Index of the archive in a list of archives, or -1 for a file on disk.
      offset: Position of the first byte in the archive.
      stored: Number of bytes in the archive, or -1 for a file that the archive holds in pieces.
      inflated: Number of bytes after inflating, or 0 if the bytes are not compressed.
    """

    archive: int
    offset: int
    stored: int
    inflated: int


ON_DISK = Span(-1, 0, 0, 0)
_SPARSE = -1


def tar_members(path: pathlib.Path, archive: int = 0) -> dict[str, Span]:
    """Returns the spans of the files in an uncompressed tar, by name.

    The last of several members with the same name counts, as when a tar is unpacked.

    Args:
      path: Path of the tar.
      archive: Index of the tar for the spans.

    Raises:
      ValueError: The tar is damaged or compressed.
    """
    try:
        with open_regular(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            return {
                m.name: Span(archive, m.offset_data, _SPARSE if m.issparse() else m.size, 0)
                for m in tar
                if m.isfile()
            }
    except Exception as error:  # noqa: BLE001 - the headers of a damaged tar can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"'{path}' is not a whole, uncompressed tar: {reason}") from error


def zip_members(path: pathlib.Path, archive: int = 0) -> dict[str, Span]:
    """Returns the spans of the files in a zip, by name.

    Only members that are stored or deflated are returned. Links, encrypted members and members
    whose name leads outside the archive are skipped.

    Args:
      path: Path of the zip.
      archive: Index of the zip for the spans.

    Raises:
      ValueError: The zip is damaged.
    """
    members = {}
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as content:
            for info in content.infolist():
                is_plain = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                is_link = stat.S_ISLNK(info.external_attr >> 16)
                name = pathlib.PurePosixPath(info.filename)
                if name.is_absolute() or ".." in name.parts:
                    continue
                if info.is_dir() or is_link or not is_plain or info.flag_bits & 1:
                    continue
                # The data follows the local header, whose extra field may be longer or shorter
                # than the one in the central directory.
                file.seek(info.header_offset)
                header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                if header[0] != b"PK\x03\x04":
                    raise zipfile.BadZipFile(f"no file begins where '{info.filename}' should")
                offset = info.header_offset + _LOCAL_HEADER.size + header[-2] + header[-1]
                is_stored = info.compress_type == zipfile.ZIP_STORED
                members[info.filename] = Span(
                    archive,
                    offset,
                    info.compress_size if info.file_size else 0,
                    0 if is_stored else info.file_size,
                )
    except (zipfile.BadZipFile, struct.error, OSError, Refused, NotImplementedError) as error:
        raise ValueError(
            f"'{path}' is not a whole zip: {error}; fetch it again and compare its checksum"
        ) from error
    return members


def read_span(
    path: str | os.PathLike[str], span: Span, name: str = "file", most: int = MAX_MEMBER
) -> bytes:
    """Returns the bytes of a file inside an archive. Safe to call from several threads.

    Args:
      path: Path of the archive.
      span: The bytes to read.
      name: Name of the file for error messages.
      most: Largest number of bytes that are read.

    Raises:
      ValueError: The archive does not open, or the span is too long, cut off or does not inflate.
    """
    size = max(span.stored, span.inflated)
    if span.stored == _SPARSE:
        raise ValueError(f"'{name}' in '{path}' is stored in pieces; pack it without --sparse")
    if size > most:
        raise ValueError(f"'{name}' in '{path}' has {size:,} bytes, expected at most {most:,}")
    try:
        with open_regular(path) as file:
            # The archive may be shorter than it claims, so that no memory is set aside for it.
            left = max(0, os.fstat(file.fileno()).st_size - span.offset)
            file.seek(span.offset)
            data = file.read(min(span.stored, left))
        if span.inflated:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, span.inflated)
    except (OSError, Refused, zlib.error) as error:
        raise ValueError(f"'{name}' in '{path}' does not open: {error}") from error
    if len(data) != (span.inflated or span.stored):
        raise ValueError(f"'{name}' in '{path}' is cut off; fetch the archive again")
    return data


class Files:
    """The files below a root folder, both those on disk and those inside zips in that folder.

    A name is also looked up one folder further down, because archives, and the folders that people
    unpack them into, differ in their topmost folder.
    """

    def __init__(self, root: pathlib.Path, archives: Sequence[str]):
        self.root = root.absolute()
        self.archives = [self.root / name for name in archives if (self.root / name).is_file()]
        self._members: dict[str, Span] = {}
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

    def find(self, name: str) -> tuple[str, Span] | None:
        """Returns the path of a file, in its archive or below the root, and its span.

        Args:
          name: Relative name of the file. It may come from a list.

        Returns:
          None if there is no such file.

        Raises:
          ValueError: The name leads outside the root.
        """
        name = relative_name(name, str(self.root))
        for top in self._member_tops:
            if top + name in self._members:
                return top + name, self._members[top + name]
        folder, _, base = name.rpartition("/")
        for top in self._disk_tops:
            if base in self._listing(top + folder):
                return top + name, ON_DISK
        return None

    def find_all(self, names: Sequence[str]) -> tuple[np.ndarray, Int64[np.ndarray, "n 4"]]:
        """Returns the paths and spans of several files. The path of a missing file is empty."""
        found = [self.find(name) or ("", ON_DISK) for name in names]
        spans = np.array([span for _, span in found], np.int64).reshape(-1, 4)
        return np.array([path for path, _ in found]), spans

    def read(self, name: str) -> bytes | None:
        """Returns the bytes of a file, or None if there is no such file."""
        found = self.find(name)
        if found is None:
            return None
        path, span = found
        if span.archive >= 0:
            return read_span(self.archives[span.archive], span, name)
        try:
            return read_bounded(self.root / path, MAX_MEMBER)
        except (OSError, Refused) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"'{self.root / path}' does not open: {reason}") from error
