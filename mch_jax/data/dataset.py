"""What a data set is: names, labels, three lists of rows, and a function that decodes a photo."""

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
      name: the data set's name.
      classes: names of the label columns.
      ids: the photos' names; no name occurs twice.
      labels: multi-hot labels.
      query: rows of the queries.
      database: rows of the database, `train` among them.
      train: rows that training sees.
      read: decodes the photo of one row to RGB, upright; safe to call from several threads.
        Raises ValueError for a photo that doesn't decode.
      sizes: width and height of each photo in pixels; before `audit` zeros, unless the reader knows
        them, as of photos that were shrunk beforehand.
      files: what the photos are read from, so that a later audit can tell whether they changed;
        none for photos that are made; None where there is no telling.
      notes: what the reader left out or found unusual, a sentence each.
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
    notes: tuple[str, ...] = ()
