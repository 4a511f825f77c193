"""Data sets of photos: readers, audit, splits, and batches.

  dataset: `Dataset`: names, labels, three splits, and a function that decodes a photo.
  readers, literature: Readers of the built-in scenes, coco18, folders, and published data sets.
  label_files, split_lists: Readers of the text files with labels and splits.
  similar_pairs: Readers of the text files with pairs and triplets of similar photos.
  splits: Random splits.
  archives, photos, sources: Photos in folders, tars and zips, and their decoding.
  audits: Checks that every data set passes before a run.
  contents: Digest, size and damage of each photo, kept in a file between runs.
  loader: Batches, decoded in background threads.
  composer: Generator of the scenes of the built-in data set.
  fetch, records: Download of published archives, and their conversion to small records.

Rows are indices into `Dataset.ids`. The database contains the training rows and no query row.
"""

import inspect
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from mch_jax.data.audits import audit, label_counts
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
    "label_counts",
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

# The data sets that `mch_jax.data.records` can convert to records.
PUBLISHED = ("coco", "nuswide", "mirflickr")


def _is_records(root: str | os.PathLike | None) -> bool:
    return root is not None and (pathlib.Path(root) / "dataset_info.json").is_file()


def load(
    name: str, root: str | os.PathLike | None = None, seed: int = 0, **settings: Any
) -> Dataset:
    """Returns a data set by its name. Call `audit` to check it.

    Args:
      name: A key of READERS.
      root: Folder with the files of the data set, for readers that need one. For a name in
        PUBLISHED it may be a folder of records.
      seed: Seed for readers that draw something.
      **settings: Further arguments of the reader.

    Returns:
      The data set.

    Raises:
      ValueError: The name or a setting is unknown, or a file is missing or damaged.
    """
    if name not in READERS:
        raise ValueError(f"data set '{name}' is unknown, expected one of {', '.join(READERS)}")
    if name in PUBLISHED and _is_records(root):
        from mch_jax.data import records  # TFDS takes two seconds to import

        if settings:
            raise ValueError(
                f"data set '{name}': '{root}' holds records, whose settings were fixed when they "
                f"were made; remove '{next(iter(settings))}'"
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
