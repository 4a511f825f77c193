"""Splits from the list files of the literature."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from mch_jax.data.dataset import SPLITS
from mch_jax.data.label_files import read_list, relative_name

# Two columns are one class if their positives overlap (intersection over union) at least as much.
_SAME_CLASS = 0.9
_NAMES = {"query": ("query", "test"), "database": ("database",), "train": ("train",)}


def files_of(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Returns the list files of a split: one, or numbered parts such as database0.txt, or none."""
    for name in _NAMES[split]:
        if (folder / f"{name}.txt").is_file():
            return [folder / f"{name}.txt"]
        parts = sorted(folder.glob(f"{name}[0-9].txt"))
        if parts:
            return parts
    return []


def read_splits(
    folder: pathlib.Path,
    names: Sequence[str],
    labels: UInt8[np.ndarray, "n c"],
    key: Callable[[str], str],
    hint: str,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads the rows of each split from list files.

    The labels in the lists are only compared with those of the annotations. Without a list of the
    database, the database is every photo that is not a query.

    Args:
      folder: Folder with query.txt or test.txt, train.txt and optionally database.txt, whole or in
        numbered parts. Lines are `path l1 ... lN`.
      names: Names of the photos of the data set.
      labels: Labels of the photos according to the annotations.
      key: Function from a photo's name, in a list or in the data set, to the part of the name that
        identifies the photo.
      hint: What the columns of the lists should be, for error messages.

    Returns:
      The rows of each split, and remarks on the lists.

    Raises:
      ValueError: A list is missing or names a photo that is not in the data set, the splits
        overlap, or the labels differ from the annotations.
    """
    rows_of: dict[str, int] = {}
    for row, name in enumerate(names):
        rows_of[key(name)] = -1 if key(name) in rows_of else row
    rows: dict[str, np.ndarray] = {}
    listed_rows, listed_labels = [], []
    for split in SPLITS:
        content = {}
        for path in files_of(folder, split):
            content |= read_list(
                path, lambda name, source: key(relative_name(name.lstrip("/"), source))
            )
        if not content and split != "database":
            file = f"{_NAMES[split][0]}.txt"
            raise ValueError(
                f"'{folder}' has no {file}; expected lists of queries and training set"
            )
        unknown = [name for name in content if rows_of.get(name, -1) < 0]
        if unknown:
            raise ValueError(
                f"the {split} list in '{folder}' has {len(unknown)} photos that the data set does "
                f"not contain exactly once, '{unknown[0]}' first; expected lists of the same data "
                "set (photos without a label are left out unless keep_unlabelled is set)"
            )
        rows[split] = np.array([rows_of[name] for name in content], np.int64)
        if content:
            widths = {len(value) for value in content.values()}
            if widths != {labels.shape[1]}:
                raise ValueError(
                    f"the {split} list in '{folder}' has {max(widths)} labels per line, expected "
                    f"{labels.shape[1]}; {hint}"
                )
            listed_rows.append(rows[split])
            listed_labels.append(np.stack(list(content.values())))
    if not len(rows["database"]):
        rows["database"] = np.setdiff1d(np.arange(len(names)), rows["query"])
    _check_overlap(folder, rows)
    annotated = labels[np.concatenate(listed_rows)]
    return rows, _compare(folder, np.concatenate(listed_labels), annotated, hint)


def _check_overlap(folder: pathlib.Path, rows: dict[str, np.ndarray]) -> None:
    shared = np.intersect1d(rows["query"], rows["database"])
    if len(shared) and len(shared) == len(rows["query"]):
        raise ValueError(
            f"the database list in '{folder}' contains all {len(shared)} queries, as HashNet's "
            "published list of COCO does: each query would find itself. Remove the database list; "
            "the database is then every photo that is not a query"
        )
    both = np.intersect1d(rows["query"], rows["train"])
    if len(both):
        raise ValueError(
            f"the lists in '{folder}' have {len(both)} photos in both the queries and the training "
            "set; expected none"
        )


def _compare(
    folder: pathlib.Path,
    listed: UInt8[np.ndarray, "k c"],
    annotated: UInt8[np.ndarray, "k c"],
    hint: str,
) -> list[str]:
    """Compares the labels of the lists with the annotations, and returns remarks.

    Raises:
      ValueError: A column of the lists is not one of the annotated classes.
    """
    different = int((listed != annotated).any(1).sum())
    if not different:
        return []
    common = listed.T.astype(np.float32) @ annotated.astype(np.float32)
    sums = listed.sum(0, dtype=np.int64)[:, None] + annotated.sum(0, dtype=np.int64)[None]
    overlap = np.where(sums > 0, common / np.maximum(sums - common, 1), 1.0)
    if (overlap.diagonal() >= _SAME_CLASS).all():
        return [
            f"{different} of {len(annotated)} lines of the lists have other labels than the "
            "annotations; the annotations are used"
        ]
    best = overlap.argmax(1)
    occurs = listed.any(0)
    if (overlap.max(1)[occurs] >= _SAME_CLASS).all() and len(set(best[occurs])) == occurs.sum():
        return [f"the lists have their columns in another order; {hint}. The annotations are used"]
    raise ValueError(
        f"the labels of the lists in '{folder}' differ from the annotations on {different} of "
        f"{len(annotated)} lines; {hint}"
    )
