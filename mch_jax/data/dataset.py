"""The class of a data set: names, labels, three splits, and a function that decodes a photo."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int32, Int64, UInt8

SPLITS = ("query", "database", "train")


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Photos by name, with their labels and the three splits.

    Attributes:
      name: Name of the data set.
      classes: Names of the label columns.
      ids: Names of the photos, each of them unique.
      labels: Multi-hot labels.
      query: Rows of the queries.
      database: Rows of the database. It includes the rows of `train`.
      train: Rows of the training set.
      read: Function that decodes the photo of a row to RGB, rotated according to its EXIF
        orientation. It is safe to call from several threads, and raises ValueError for a photo that
        does not decode.
      sizes: Width and height of each photo in pixels. They are 0 before the audit, unless the
        reader knows them, as it does for photos that were resized beforehand.
      files: The files that photos are read from, from which a later audit tells whether a photo
        has changed. Empty for generated photos, None if unknown.
      content: Function that returns the bytes of the file of a row's photo. It is safe to call from
        several threads, and raises ValueError for a photo that cannot be read. None for generated
        photos.
      digests: Digest of what each photo contains (`contents.Contents`). None before the audit.
      notes: Sentences on what the reader left out or found unusual.
    """

    name: str
    classes: tuple[str, ...]
    ids: np.ndarray
    labels: UInt8[np.ndarray, "n c"]
    query: Int64[np.ndarray, " q"]
    database: Int64[np.ndarray, " d"]
    train: Int64[np.ndarray, " t"]
    read: Callable[[int], np.ndarray]
    sizes: Int32[np.ndarray, "n 2"]
    files: Sequence[pathlib.Path] | None = None
    content: Callable[[int], bytes] | None = None
    digests: UInt8[np.ndarray, "n 16"] | None = None
    notes: tuple[str, ...] = ()
