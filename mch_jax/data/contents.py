"""What the photos of a data set contain: a digest, the size and the damage of each.

Reading and decoding every photo takes minutes for a large data set. The result is kept in a file
and is used again as long as the operating system reports no change of the photos' files. After a
change every photo is read again, and those with other bytes are decoded again.
"""

import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Int32, UInt8

from mch_jax.data.dataset import Dataset
from mch_jax.files import load_arrays, save_arrays

DIGEST_BYTES = 16
_SAMPLE = 4  # number of generated photos that are compared with the digests kept of them


class Contents(NamedTuple):
    """What the photos of a data set contain.

    Attributes:
      digests: BLAKE2b digest of the bytes of each photo's file or, for generated photos, of the
        pixels. It is 0 for a photo that cannot be read.
      sizes: Width and height of each photo in pixels; 0 for damaged photos.
      damaged: Why each damaged photo does not decode, by row.
    """

    digests: UInt8[np.ndarray, "n 16"]
    sizes: Int32[np.ndarray, "n 2"]
    damaged: dict[int, str]


class _Photo(NamedTuple):
    """What one photo contains, as in `Contents`; `reason` is empty for a photo that decodes."""

    digest: bytes
    size: tuple[int, int]
    reason: str = ""


def read(dataset: Dataset, kept: pathlib.Path | None = None) -> Contents:
    """Returns what the photos of a data set contain.

    Args:
      dataset: The data set.
      kept: File that `save` may have written. Without it, every photo is read and decoded.
    """
    before = _load(kept) if kept and dataset.files is not None else None
    if before is None:
        return _examine(dataset, {})
    if before.is_of_earlier_version:
        is_same = before.fingerprint == _fingerprint(dataset, with_ctime=False)
        return _with_digests(dataset, before.contents) if is_same else _examine(dataset, {})
    if before.fingerprint == _fingerprint(dataset) and _sample_agrees(dataset, before.contents):
        return before.contents
    contents = _examine(dataset, _by_name(before))
    _report_changes(dataset, contents, before)
    return contents


def save(path: pathlib.Path, dataset: Dataset, contents: Contents) -> None:
    """Writes what the photos of a data set contain, unless its files are unknown.

    Args:
      path: Path of the file.
      dataset: The data set.
      contents: What `read` returned.
    """
    if dataset.files is not None:
        arrays = {"sizes": contents.sizes, "digests": contents.digests, "ids": dataset.ids}
        damaged = list(contents.damaged.items())
        save_arrays(path, arrays, {"fingerprint": _fingerprint(dataset), "damaged": damaged})


class _Kept(NamedTuple):
    """The content of the file of an earlier audit.

    Attributes:
      ids: Names of the photos.
      contents: What they contained.
      fingerprint: `_fingerprint` at that time.
      is_of_earlier_version: True if the file has no digests and its fingerprint no change times.
    """

    ids: np.ndarray
    contents: Contents
    fingerprint: str
    is_of_earlier_version: bool


def _load(path: pathlib.Path) -> _Kept | None:
    """Returns the content of a file of `save`, or None if it is missing or damaged."""
    try:
        tree, settings = load_arrays(path)
        sizes, is_old = tree["sizes"], "digests" not in tree
        digests = np.zeros((len(sizes), DIGEST_BYTES), np.uint8) if is_old else tree["digests"]
        ids = np.zeros(len(sizes), "U1") if is_old else tree["ids"]
        damaged = {int(row): str(reason) for row, reason in settings["damaged"]}
        is_sound = (
            sizes.dtype == np.int32
            and sizes.shape == (len(sizes), 2)
            and digests.dtype == np.uint8
            and digests.shape == (len(sizes), DIGEST_BYTES)
            and ids.shape == sizes.shape[:1]
            and all(0 <= row < len(sizes) for row in damaged)
        )
        if is_sound:
            return _Kept(ids, Contents(digests, sizes, damaged), settings["fingerprint"], is_old)
    except (ValueError, KeyError, TypeError):
        pass
    return None


def _fingerprint(dataset: Dataset, with_ctime: bool = True) -> str:
    """Returns a hash of the names of the photos and of the sizes and times of their files.

    Args:
      dataset: The data set.
      with_ctime: Whether to include the time of the last change of a file's metadata, which unlike
        the modification time cannot be set. Earlier versions did not include it.
    """
    digest = hashlib.sha256(f"{dataset.name} {len(dataset.ids)} ".encode())
    for array in (dataset.ids, dataset.sizes):
        digest.update(f"{array.dtype}".encode() + array.tobytes())
    for path in dataset.files or ():
        try:
            status = path.stat()
        except (OSError, ValueError):
            digest.update(b"absent ")
        else:
            digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
            if with_ctime:
                digest.update(f"{status.st_ctime_ns} ".encode())
    return digest.hexdigest()


def digest(data: bytes | np.ndarray) -> bytes:
    """Returns the digest of a photo's bytes or pixels."""
    view = data if isinstance(data, bytes) else np.ascontiguousarray(data).data
    return hashlib.blake2b(view, digest_size=DIGEST_BYTES).digest()


def _read_photo(dataset: Dataset, known: Mapping[tuple[str, bytes], _Photo], row: int) -> _Photo:
    """Returns what a photo contains; it is not decoded if its name and digest are known."""
    found = bytes(DIGEST_BYTES)
    try:
        if dataset.content is not None:
            found = digest(dataset.content(row))
            photo = known.get((str(dataset.ids[row]), found))
            if photo:
                return photo
        pixels = dataset.read(row)
    except ValueError as error:
        return _Photo(found, (0, 0), str(error))
    if dataset.content is None:
        found = digest(pixels)
    return _Photo(found, (pixels.shape[1], pixels.shape[0]))


def _examine(dataset: Dataset, known: Mapping[tuple[str, bytes], _Photo]) -> Contents:
    """Reads every photo, and decodes those that are not known by name and digest."""
    photos = _map(functools.partial(_read_photo, dataset, known), len(dataset.ids))
    digests = np.frombuffer(b"".join(photo.digest for photo in photos), np.uint8)
    return Contents(
        digests.reshape(-1, DIGEST_BYTES),
        np.array([photo.size for photo in photos], np.int32).reshape(-1, 2),
        {row: photo.reason for row, photo in enumerate(photos) if photo.reason},
    )


def _with_digests(dataset: Dataset, contents: Contents) -> Contents:
    """Returns contents that an earlier version kept, with the digests that it lacked."""

    def one(row: int) -> bytes:
        try:
            data = dataset.read(row) if dataset.content is None else dataset.content(row)
        except ValueError:  # damaged, as it was before
            return bytes(DIGEST_BYTES)
        return digest(data)

    found = np.frombuffer(b"".join(_map(one, len(dataset.ids))), np.uint8)
    return contents._replace(digests=found.reshape(-1, DIGEST_BYTES))


def _map(function: Any, count: int) -> list[Any]:
    with futures.ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="audit") as pool:
        return list(pool.map(function, range(count)))


def _by_name(before: _Kept) -> dict[tuple[str, bytes], _Photo]:
    """Returns the photos of an earlier audit by their names and digests."""
    digests, sizes, damaged = before.contents
    return {
        (str(name), found.tobytes()): _Photo(
            found.tobytes(), (int(size[0]), int(size[1])), damaged.get(row, "")
        )
        for row, (name, found, size) in enumerate(zip(before.ids, digests, sizes, strict=True))
    }


def _sample_agrees(dataset: Dataset, contents: Contents) -> bool:
    """Returns False if a few generated photos differ from those that were kept.

    No file tells whether the program that generates them has changed.
    """
    if dataset.content is not None:
        return True
    rows = range(0, len(dataset.ids), max(1, len(dataset.ids) // _SAMPLE))[:_SAMPLE]
    return all(
        _read_photo(dataset, {}, row).digest == contents.digests[row].tobytes() for row in rows
    )


def _report_changes(dataset: Dataset, contents: Contents, before: _Kept) -> None:
    """Logs how many photos have other bytes under the same name."""
    earlier = dict(zip(map(str, before.ids), map(bytes, before.contents.digests), strict=True))
    changed = [
        str(name)
        for name, found in zip(dataset.ids, contents.digests, strict=True)
        if earlier.get(str(name), bytes(found)) != bytes(found)
    ]
    if changed:
        logging.warning(
            "%s: %d of %d photos changed since the last start, '%s' first",
            dataset.name, len(changed), len(dataset.ids), changed[0],
        )  # fmt: skip
