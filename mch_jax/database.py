"""A database to search: the codes of its items, the index over them, and its photos.

Everything that searches shares this class: `mch_jax.load`, the search command and the service. The
module imports neither JAX nor `mch_jax.data`, so that a search by codes starts quickly.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Float32, Int, Int64, UInt8

from mch_jax.files import codes_file
from mch_jax.files.codes_file import CodeFile
from mch_jax.index import BucketIndex, NearestItems
from mch_jax.query_codes import nearest, ordering_margins

Source = TypeVar("Source")
ReadPhoto = Callable[[str], UInt8[np.ndarray, "h w 3"]]


class Neighbour(NamedTuple):
    """An item near a query, and its code that is nearest to the query.

    Attributes:
      item: Row of the item in `ids`.
      distance: Hamming distance in bits between that code and the query.
      row: Row of that code in `codes`; of several that are equally near, the one at the least
        asymmetric distance where margins are given, then the first one.
    """

    item: int
    distance: int
    row: int


class Database:
    """A codes file and its index, with class names and photos where they are available.

    The two indexes are built on first use and kept.

    Attributes:
      file: The contents of the codes file.
      name: The path of the codes file, for error messages.
      classes: Names of the label columns; empty if they are not known.
    """

    def __init__(
        self,
        file: CodeFile,
        name: str | os.PathLike[str] = "the database",
        classes: tuple[str, ...] = (),
        read_photo: ReadPhoto | None = None,
    ):
        """Creates a database.

        Args:
          file: The contents of a codes file.
          name: The path of the codes file, for error messages.
          classes: Names of the label columns; ignored if their number is another one.
          read_photo: Returns the pixels of the photo with a given id, or raises ValueError. None
            if the photos are not available.
        """
        self.file, self.name = file, str(name)
        self.classes = classes if len(classes) == file.labels.shape[1] else ()
        self._read_photo = read_photo
        self._starts = np.searchsorted(file.item, np.arange(len(file.ids) + 1))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        classes: tuple[str, ...] = (),
        read_photo: ReadPhoto | None = None,
    ) -> "Database":
        """Returns the database in a codes file; the arguments are those of the constructor.

        Raises:
          ValueError: The file is missing or damaged.
        """
        return cls(codes_file.load(path), path, classes, read_photo)

    def __len__(self) -> int:
        """Returns the number of items."""
        return len(self.ids)

    @property
    def codes(self) -> UInt8[np.ndarray, "c bytes"]:
        """The codes of all items; bit i of a code is bit i % 8 of byte i // 8."""
        return self.file.codes

    @property
    def item(self) -> Int[np.ndarray, " c"]:
        """The item that each code belongs to, ascending."""
        return self.file.item

    @property
    def ids(self) -> np.ndarray:
        """The names of the items' photos."""
        return self.file.ids

    @property
    def keep_prob(self) -> Float[np.ndarray, " c"]:
        """The policy's probability of keeping each code; 1 for the whole image's."""
        return self.file.keep_prob

    @property
    def box(self) -> Int[np.ndarray, "c 4"]:
        """The region of each code: left, top, right, bottom in pixels of the upright photo."""
        return self.file.box

    @property
    def labels(self) -> UInt8[np.ndarray, "n classes"]:
        """The items' labels, multi-hot; no columns if they are not known."""
        return self.file.labels

    @property
    def num_bits(self) -> int:
        """The code length."""
        return self.file.num_bits

    @functools.cached_property
    def index(self) -> BucketIndex:
        """The index of all codes."""
        return BucketIndex.build(self.codes, self.item, self.num_bits)

    @functools.cached_property
    def base_index(self) -> BucketIndex:
        """The index of the whole images' codes alone, one per item, as the base model has them."""
        first = self._starts[:-1]
        return BucketIndex.build(self.codes[first], np.arange(len(self)), self.num_bits)

    def check_num_bits(self, num_bits: int, source: str | os.PathLike[str]) -> None:
        """Checks that other codes can be compared with those of the database.

        Args:
          num_bits: The length of the other codes.
          source: Where they come from, for the error message.

        Raises:
          ValueError: The lengths differ.
        """
        if num_bits != self.num_bits:
            raise ValueError(
                f"{source} has codes of {num_bits} bits, {self.name} has codes of {self.num_bits} "
                "bits; use codes that the same run made"
            )

    def search(
        self,
        query: UInt8[np.ndarray, "t bytes"],
        k: int,
        is_base: bool = False,
        margins: Float32[np.ndarray, "t q"] | None = None,
        first: int | None = None,
        within: int | None = None,
        label: str | None = None,
    ) -> tuple[list[Neighbour], NearestItems]:
        """Returns the k nearest items to one query, and the index's answer with its counts.

        The order is that in which people see answers: items at equal Hamming distance come by
        ascending asymmetric distance where margins are given, then in the database's order.

        Args:
          query: The query's code, or several, of which the nearest to an item counts.
          k: The number of items; fewer are returned where the database has fewer.
          is_base: Whether to compare with the codes of whole images only.
          margins: Absolute value of the logit of each bit of each code.
          first: The item that the query itself is, if any. It comes first if its distance is 0.
          within: The largest distance in bits of an answer; any by default.
          label: The class that all answers have; any by default.

        Raises:
          ValueError: There is no such class.
        """
        index = self.base_index if is_base else self.index
        allowed = None if label is None else self.labelled(label)
        if len(query) == 1:
            hits = index.search(query, k, allowed=allowed)
        else:
            hits = nearest(index, query[None], k, allowed)
        items, costs = hits.item[0], None
        if margins is not None:
            costs = ordering_margins(margins)
            items = index.search(query[None], k, margins=costs[None], allowed=allowed).item[0]
        items = items[items >= 0].tolist()
        is_found = first is not None and (allowed is None or first in allowed)
        if is_found and self._distance(self._row(first, query, is_base), query) == 0:
            items = [first, *(item for item in items if item != first)][:k]
        rows = [self._row(item, query, is_base, costs) for item in items]
        neighbours = [
            Neighbour(item, self._distance(row, query), row)
            for item, row in zip(items, rows, strict=True)
        ]
        if within is not None:
            neighbours = [near for near in neighbours if near.distance <= within]
        return neighbours, hits

    def labelled(self, label: str) -> Int64[np.ndarray, " a"]:
        """Returns the items of a class, ascending.

        Raises:
          ValueError: The classes are not known, or there is no such class.
        """
        if label not in self.classes:
            raise ValueError(
                f"label is {label!r}, expected one of {', '.join(self.classes) or 'none'}"
            )
        return np.flatnonzero(self.labels[:, self.classes.index(label)])

    def _distance(self, row: int, query: UInt8[np.ndarray, "t bytes"]) -> int:
        return int(np.bitwise_count(self.codes[row] ^ query).sum(1).min())

    def _row(self, item, query, is_base: bool, costs=None) -> int:
        """Returns the row of the code at which an item is found."""
        return int(self._starts[item]) if is_base else self.nearest_row(item, query, costs)

    def nearest_row(
        self,
        item: int,
        query: UInt8[np.ndarray, "t bytes"],
        margins: Float32[np.ndarray, "t q"] | None = None,
    ) -> int:
        """Returns the row of an item's code that is nearest to a query, the first of equals.

        Args:
          item: The item.
          query: The query's code, or several.
          margins: What each bit costs; 1 by default.
        """
        rows = self.rows(item)
        differing: np.ndarray = self.codes[rows][:, None] ^ query[None]
        if margins is None:
            cost = np.bitwise_count(differing).sum(2)
        else:
            bits = np.unpackbits(differing, axis=2, count=self.num_bits, bitorder="little")
            cost = (bits * margins[None].astype(np.float64)).sum(2)
        return rows[int(cost.min(1).argmin())]

    def item_of(self, path: str | os.PathLike[str]) -> int | None:
        """Returns the item whose id the path of a photo ends with, None if there is none."""
        parts = PurePath(path).parts
        for start in range(len(parts)):
            found = np.flatnonzero(self.ids == PurePath(*parts[start:]).as_posix())
            if len(found):
                return int(found[0])
        return None

    def rows(self, item: int) -> range:
        """Returns the rows of an item's codes; the first one is the whole image's."""
        return range(int(self._starts[item]), int(self._starts[item + 1]))

    def whole_code(self, item: int) -> UInt8[np.ndarray, "1 bytes"]:
        """Returns the code of an item's whole image."""
        return self.codes[self._starts[item] : self._starts[item] + 1]

    def size(self, item: int) -> tuple[int, int]:
        """Returns the width and height of an item's photo in pixels."""
        _, _, width, height = self.box[self._starts[item]].tolist()
        return width, height

    def class_names(self, item: int) -> list[str]:
        """Returns the names of an item's classes; none if they are not known."""
        if not self.classes:
            return []
        return [self.classes[i] for i in np.flatnonzero(self.labels[item])]

    def photo(self, item: int) -> UInt8[np.ndarray, "h w 3"]:
        """Returns the pixels of an item's photo.

        Raises:
          ValueError: The photos are not available, or this one cannot be read.
        """
        if self._read_photo is None:
            raise ValueError("the photos of this database are not available")
        return self._read_photo(str(self.ids[item]))


def photo_reader(
    source_by_id: Mapping[str, Source], read: Callable[[Source], UInt8[np.ndarray, "h w 3"]]
) -> ReadPhoto:
    """Returns a function that reads the photo with a given id.

    Args:
      source_by_id: Where each photo is, in the form that `read` expects.
      read: Returns the pixels of a photo.
    """

    def read_photo(photo_id: str) -> UInt8[np.ndarray, "h w 3"]:
        if photo_id not in source_by_id:
            raise ValueError(f"there is no photo '{photo_id}'")
        return read(source_by_id[photo_id])

    return read_photo
