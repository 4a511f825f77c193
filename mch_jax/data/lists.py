"""The literature's list files: which photos are queries, database and training set."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from mch_jax.data.dataset import SPLITS
from mch_jax.data.tables import inside, read_list

# Least share of positives, in common over all, for two columns to be one class.
_SAME_CLASS = 0.9
_NAMES = {"query": ("query", "test"), "database": ("database",), "train": ("train",)}


def files_of(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Returns the files of a split: one, or several numbered parts such as database0.txt."""
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
    """Reads the rows of the splits from list files, whose labels only check the annotations.

    Without a list of the database, it is every photo that is no query.

    Args:
      folder: with query.txt or test.txt, train.txt and perhaps database.txt, whole or in numbered
        parts; lines are `path l1 ... lN`.
      names: of the photos.
      labels: from the annotations.
      key: what tells photos apart in both kinds of names, whose folders differ.
      hint: said where labels disagree: what the columns should be.

    Returns:
      Rows by split, and remarks.

    Raises:
      ValueError: a list is missing or has a photo that is not in the data set, the splits overlap
        as those of a known bad list do, or the labels are not the annotations'.
    """
    rows_of: dict[str, int] = {}
    for row, name in enumerate(names):
        rows_of[key(name)] = -1 if key(name) in rows_of else row
    rows: dict[str, np.ndarray] = {}
    listed = []
    for split in SPLITS:
        content = {}
        for path in files_of(folder, split):
            content |= read_list(path, lambda name, source: key(inside(name.lstrip("/"), source)))
        if not content and split != "database":
            file = f"{_NAMES[split][0]}.txt"
            raise ValueError(
                f"'{folder}' has no {file}; expected lists of queries and training set"
            )
        unknown = [name for name in content if rows_of.get(name, -1) < 0]
        if unknown:
            raise ValueError(
                f"the {split} list in '{folder}' has {len(unknown)} photos that the data set does "
                f"not have, or not once, '{unknown[0]}' first; expected lists made from it "
                "(photos without a label are left out unless keep_unlabelled is set)"
            )
        rows[split] = np.array([rows_of[name] for name in content], np.int64)
        if content:
            widths = {len(value) for value in content.values()}
            if widths != {labels.shape[1]}:
                raise ValueError(
                    f"the {split} list in '{folder}' has {max(widths)} labels a line, expected "
                    f"{labels.shape[1]}; {hint}"
                )
            listed.append((rows[split], np.stack(list(content.values()))))
    if not len(rows["database"]):
        rows["database"] = np.setdiff1d(np.arange(len(names)), rows["query"])
    _check_overlap(folder, rows)
    given = np.concatenate([values for _, values in listed])
    own = labels[np.concatenate([places for places, _ in listed])]
    return rows, _compare(folder, given, own, hint)


def _check_overlap(folder: pathlib.Path, rows: dict[str, np.ndarray]) -> None:
    shared = np.intersect1d(rows["query"], rows["database"])
    if len(shared) and len(shared) == len(rows["query"]):
        raise ValueError(
            f"the database list in '{folder}' contains all {len(shared)} queries, as HashNet's "
            "published list of COCO does: each query would find itself. Remove the database list; "
            "the database is then every photo that is no query"
        )
    both = np.intersect1d(rows["query"], rows["train"])
    if len(both):
        raise ValueError(
            f"the lists in '{folder}' have {len(both)} photos among both queries and training "
            "set; expected different ones"
        )


def _compare(
    folder: pathlib.Path,
    given: UInt8[np.ndarray, "k c"],
    own: UInt8[np.ndarray, "k c"],
    hint: str,
) -> list[str]:
    """Raises ValueError unless each listed column is one annotated class; returns remarks."""
    different = int((given != own).any(1).sum())
    if not different:
        return []
    common = given.T.astype(np.float32) @ own.astype(np.float32)
    sums = given.sum(0, dtype=np.int64)[:, None] + own.sum(0, dtype=np.int64)[None]
    overlap = np.where(sums > 0, common / np.maximum(sums - common, 1), 1.0)
    if (overlap.diagonal() >= _SAME_CLASS).all():
        return [
            f"{different} of {len(own)} lines of the lists have other labels than the annotations, "
            "which are used"
        ]
    best = overlap.argmax(1)
    occurs = given.any(0)
    if (overlap.max(1)[occurs] >= _SAME_CLASS).all() and len(set(best[occurs])) == occurs.sum():
        return [f"the lists have their columns in another order; {hint}. The annotations are used"]
    raise ValueError(
        f"the labels of the lists in '{folder}' are not those of the annotations on {different} of "
        f"{len(own)} lines; {hint}"
    )
