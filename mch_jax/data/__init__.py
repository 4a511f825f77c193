"""Data sets: readers, the audit every one of them passes, and batches.

A data set is names, labels and three lists of rows in memory, and a function that decodes one
photo. Rows are numbers into `ids`; the database holds the training rows and no query row.
"""

import inspect
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from mch_jax.data.audits import audit
from mch_jax.data.dataset import Dataset
from mch_jax.data.literature import coco, mirflickr, nuswide
from mch_jax.data.loader import batches, epoch
from mch_jax.data.photos import decode
from mch_jax.data.readers import coco18, folder, scenes

__all__ = [
    "PUBLISHED",
    "READERS",
    "Dataset",
    "audit",
    "batches",
    "coco",
    "coco18",
    "decode",
    "epoch",
    "folder",
    "load",
    "mirflickr",
    "nuswide",
    "scenes",
]

READERS: Mapping[str, Callable[..., Dataset]] = {
    "scenes": scenes,
    "coco18": coco18,
    "coco": coco,
    "nuswide": nuswide,
    "mirflickr": mirflickr,
    "folder": folder,
}

# Those that `mch_jax.data.records` makes records of.
PUBLISHED = ("coco", "nuswide", "mirflickr")


def _is_records(root: str | os.PathLike | None) -> bool:
    return root is not None and (pathlib.Path(root) / "dataset_info.json").is_file()


def load(
    name: str, root: str | os.PathLike | None = None, seed: int = 0, **settings: Any
) -> Dataset:
    """Returns a data set by its name; nothing of it is checked before `audit`.

    Args:
      name: a key of READERS.
      root: where its files lie, for the readers that have files; for those in PUBLISHED perhaps
        the folder of their records.
      seed: for the readers that draw something.
      **settings: further arguments of the reader.

    Returns:
      The data set.

    Raises:
      ValueError: no reader has that name or takes that setting, or its files are not as expected.
    """
    if name not in READERS:
        raise ValueError(f"data set '{name}' is unknown, expected one of {', '.join(READERS)}")
    if name in PUBLISHED and _is_records(root):
        from mch_jax.data import records  # TFDS takes two seconds to import

        if settings:
            raise ValueError(
                f"data set '{name}': '{root}' holds records, which have their settings from when "
                f"they were made; remove '{next(iter(settings))}'"
            )
        return records.read(name, pathlib.Path(root or ""))
    takes = inspect.signature(READERS[name]).parameters
    wrong = [setting for setting in settings if setting not in takes]
    if wrong:
        raise ValueError(
            f"data set '{name}' has no setting '{wrong[0]}', expected one of {', '.join(takes)}"
        )
    common = {"root": root, "seed": seed}
    settings |= {key: value for key, value in common.items() if key in takes}
    return READERS[name](**settings)
