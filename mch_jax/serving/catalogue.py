"""The database of a run as people see it: photos and thumbnails, codes, and who is nearest."""

import collections
import io
import json
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mch_jax import regions
from mch_jax.data import sources
from mch_jax.files import codes_file
from mch_jax.index import BucketIndex, NearestItems
from mch_jax.training.run import read_dataset

THUMBNAIL_BYTES = 64 * 2**20
Reader = Callable[[str], np.ndarray]


class Neighbour(NamedTuple):
    """An image that was found, and the code it was found by.

    Attributes:
      item: row of the database.
      distance: in bits.
      row: of the nearest of its codes, in the codes file.
    """

    item: int
    distance: int
    row: int


class Catalogue:
    """A database of codes, its index and that of the base model, and its photos.

    Args:
      file: the codes.
      classes: names of the label columns, where they are known.
      read: returns the pixels of a photo by its name, or None where there are no photos.
    """

    def __init__(
        self, file: codes_file.CodeFile, classes: tuple[str, ...] = (), read: Reader | None = None
    ):
        self.file, self.classes = file, classes
        self._read = read
        self.starts = np.searchsorted(file.item, np.arange(len(file.ids) + 1))
        self.index = BucketIndex.build(file.codes, file.item, file.num_bits)
        self.base = BucketIndex.build(
            file.codes[self.starts[:-1]], np.arange(len(file.ids)), file.num_bits
        )
        self._thumbnails: collections.OrderedDict[tuple[int, int], bytes] = (
            collections.OrderedDict()
        )
        self._thumbnail_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.file.ids)

    def size(self, item: int) -> tuple[int, int]:
        """Returns the width and height of an image in pixels."""
        return tuple(self.file.box[self.starts[item], 2:].tolist())

    def labels(self, item: int) -> list[str]:
        """Returns the names of the classes that an image shows, as far as they are known."""
        if not self.classes:
            return []
        return [self.classes[i] for i in np.flatnonzero(self.file.labels[item])]

    def region(self, row: int) -> str:
        """Returns the name of the region of the code in a row of the codes file."""
        size = self.size(int(self.file.item[row]))
        return regions.region_name(self.file.box[row].tolist(), *size)

    def code(self, item: int) -> UInt8[np.ndarray, "1 bytes"]:
        """Returns the code of a whole image."""
        return self.file.codes[self.starts[item] : self.starts[item] + 1]

    def search(
        self, query: UInt8[np.ndarray, "1 bytes"], k: int, is_base: bool = False
    ) -> tuple[list[Neighbour], NearestItems]:
        """Returns the k nearest images, by all their codes or by the whole images' alone."""
        hits = (self.base if is_base else self.index).search(query, k)
        found = []
        for item, distance in zip(hits.item[0].tolist(), hits.distance[0].tolist(), strict=True):
            if item < 0:
                break
            if is_base:
                row = int(self.starts[item])
            else:
                row = codes_file.nearest_row(self.file, item, query)
            found.append(Neighbour(item, distance, row))
        return found, hits

    def photo(self, item: int) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the pixels of an image.

        Raises:
          ValueError: there are no photos, or this one does not open.
        """
        if self._read is None:
            raise ValueError("the photos of this database are not at hand")
        return self._read(str(self.file.ids[item]))

    def thumbnail(self, item: int, side: int) -> bytes:
        """Returns an image as a JPEG whose longer side is at most `side`; the latest are kept.

        Raises:
          ValueError: as `photo`.
        """
        key = (item, side)
        with self._lock:
            if key in self._thumbnails:
                self._thumbnails.move_to_end(key)
                return self._thumbnails[key]
        image = Image.fromarray(self.photo(item))
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=88)
        made = stream.getvalue()
        with self._lock:
            if key not in self._thumbnails:
                self._thumbnails[key] = made
                self._thumbnail_bytes += len(made)
            while self._thumbnail_bytes > THUMBNAIL_BYTES:
                self._thumbnail_bytes -= len(self._thumbnails.popitem(last=False)[1])
        return made


def _config(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "config.json").read_text())
    except (OSError, ValueError):
        raise ValueError(
            f"{run / 'config.json'} cannot be read; expected the workdir of a finished run"
        ) from None


def method_of(run: Path) -> str:
    """Returns the name of a run's base hashing model."""
    return _config(run)["method"]


def of_run(run: Path) -> Catalogue:
    """Returns the database of a finished run, with the photos of its data set.

    Raises:
      ValueError: the run has no codes or its data set cannot be read.
    """
    file, config = codes_file.load(run / "codes" / "database.npz"), _config(run)
    photos = read_dataset(config)
    rows = {name: row for row, name in enumerate(photos.ids.tolist())}
    classes = photos.classes if len(photos.classes) == file.labels.shape[1] else ()
    return Catalogue(file, classes, _reader(rows, photos.read))


def of_files(path: Path, place: str | os.PathLike[str] | None) -> Catalogue:
    """Returns the database in a codes file, with the photos of a place where one is given.

    Raises:
      ValueError: the file or the place cannot be read.
    """
    file = codes_file.load(path)
    if place is None:
        return Catalogue(file)
    found = {photo.id: photo for photo in sources.find(place)}
    return Catalogue(file, (), _reader(found, sources.decode))


def _reader(found: Mapping[str, object], read: Callable) -> Reader:
    def by_name(name: str) -> np.ndarray:
        if name not in found:
            raise ValueError(f"there is no photo '{name}'")
        return read(found[name])

    return by_name
