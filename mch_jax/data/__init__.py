"""Data sets: readers, the audit every one of them passes, and batches.

A data set is names, labels and three lists of rows in memory, and a function that decodes one
photo. Rows are numbers into `ids`; the database holds the training rows and no query row.
"""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from mch_jax.data.audits import audit
from mch_jax.data.dataset import Dataset
from mch_jax.data.loader import batches, epoch
from mch_jax.data.photos import decode
from mch_jax.data.readers import coco18, folder, scenes

__all__ = [
    "READERS",
    "Dataset",
    "audit",
    "batches",
    "coco18",
    "decode",
    "epoch",
    "folder",
    "load",
    "scenes",
]

READERS: Mapping[str, Callable[..., Dataset]] = {
    "scenes": scenes,
    "coco18": coco18,
    "folder": folder,
}


def load(
    name: str, root: str | os.PathLike | None = None, seed: int = 0, **settings: Any
) -> Dataset:
    """Returns a data set by its name; nothing of it is checked before `audit`.

    Args:
      name: a key of READERS.
      root: where its files lie, for the readers that have files.
      seed: for the readers that draw something.
      **settings: further arguments of the reader.

    Returns:
      The data set.

    Raises:
      ValueError: no reader has that name or takes that setting, or its files are not as expected.
    """
    if name not in READERS:
        raise ValueError(f"data set '{name}' is unknown, expected one of {', '.join(READERS)}")
    takes = inspect.signature(READERS[name]).parameters
    wrong = [setting for setting in settings if setting not in takes]
    if wrong:
        raise ValueError(
            f"data set '{name}' has no setting '{wrong[0]}', expected one of {', '.join(takes)}"
        )
    common = {"root": root, "seed": seed}
    settings |= {key: value for key, value in common.items() if key in takes}
    return READERS[name](**settings)
