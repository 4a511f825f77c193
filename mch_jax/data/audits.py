"""The checks that every data set passes before a run."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mch_jax import metrics
from mch_jax.data import contents
from mch_jax.data.dataset import SPLITS, Dataset


def _check_splits(dataset: Dataset) -> None:
    """Raises ValueError unless names and splits fulfil the requirements of `Dataset`."""
    n = len(dataset.ids)
    names, counts = np.unique(dataset.ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"{dataset.name}: {(counts > 1).sum()} photos are listed more than once, "
            f"'{names[counts > 1][0]}' first; list each once"
        )
    for split in SPLITS:
        rows = getattr(dataset, split)
        if not len(rows):
            raise ValueError(f"{dataset.name}: the {split} split is empty, expected a photo")
        if rows.min() < 0 or rows.max() >= n or len(np.unique(rows)) < len(rows):
            raise ValueError(f"{dataset.name}: {split} rows repeat or lie outside 0 to {n - 1}")
    shared = np.intersect1d(dataset.query, dataset.database)
    if len(shared):
        raise ValueError(
            f"{dataset.name}: {len(shared)} queries are also in the database, "
            f"'{dataset.ids[shared[0]]}' first; remove them from one of the two"
        )
    outside = np.setdiff1d(dataset.train, dataset.database)
    if len(outside):
        raise ValueError(
            f"{dataset.name}: {len(outside)} training photos are not in the database, "
            f"'{dataset.ids[outside[0]]}' first; add them to the database"
        )


def _check_labels(dataset: Dataset) -> None:
    """Raises ValueError unless labels are 0 or 1 and match the names and classes in shape."""
    expected = (len(dataset.ids), len(dataset.classes))
    if dataset.labels.shape != expected:
        raise ValueError(
            f"{dataset.name}: labels have the shape {dataset.labels.shape}, expected {expected}: "
            "one row per photo and one column per class"
        )
    if dataset.labels.max(initial=0) > 1:
        raise ValueError(f"{dataset.name}: label {dataset.labels.max()}, expected 0 or 1")


def _of_kept(read: Callable[[int], Any], kept: np.ndarray, row: int) -> Any:
    return read(int(kept[row]))


def _drop(dataset: Dataset, rows: Iterable[int]) -> Dataset:
    """Returns the data set without some rows. The remaining rows are renumbered."""
    keep = np.ones(len(dataset.ids), bool)
    keep[list(rows)] = False
    moved = np.cumsum(keep) - 1
    splits = {name: getattr(dataset, name) for name in SPLITS}
    kept, content, digests = np.flatnonzero(keep), dataset.content, dataset.digests
    return dataclasses.replace(
        dataset,
        ids=dataset.ids[keep],
        labels=dataset.labels[keep],
        sizes=dataset.sizes[keep],
        read=functools.partial(_of_kept, dataset.read, kept),
        content=None if content is None else functools.partial(_of_kept, content, kept),
        digests=None if digests is None else digests[keep],
        **{name: moved[rows[keep[rows]]] for name, rows in splits.items()},
    )


def label_counts(dataset: Dataset) -> dict[str, Any]:
    """Returns what an audit counts of the labels; see `audit`."""
    num_labels = dataset.labels.sum(1)
    per_class = dataset.labels.sum(0, dtype=int).tolist()
    return {
        "classes": len(dataset.classes),
        "unlabelled": int((num_labels == 0).sum()),
        "labels_per_photo": float(num_labels.mean()),
        "per_class": dict(zip(dataset.classes, per_class, strict=True)),
        **_chance(dataset),
    }


def _chance(dataset: Dataset) -> dict[str, Any]:
    """Returns how many photos are relevant, and the mAP of a random ranking."""
    database = dataset.labels[dataset.database].astype(np.float32)
    step = max(1, 2**24 // len(database))
    queries = dataset.labels[dataset.query].astype(np.float32)
    relevant = np.concatenate(
        [
            np.count_nonzero(queries[start : start + step] @ database.T, axis=1)
            for start in range(0, len(queries), step)
        ]
    )
    some = relevant[relevant > 0]
    n = len(database)
    return {
        "queries_without_relevant": int((relevant == 0).sum()),
        "relevant_share": float(some.mean() / n) if len(some) else 0.0,
        "chance_map": metrics.chance_map(np.stack([n - relevant, relevant], 1)[:, None]),
    }


def audit(
    dataset: Dataset, on_damaged: str = "refuse", kept: str | os.PathLike | None = None
) -> tuple[Dataset, dict[str, Any]]:
    """Checks a data set as a whole and decodes every photo once.

    Args:
      dataset: The data set, as its reader returned it.
      on_damaged: What to do with photos that do not decode: `refuse` raises an error, `skip` drops
        them from all splits.
      kept: File that keeps what the photos contain (`contents.read`). It is reused while the names
        of the photos and the sizes and times of their files stay the same.

    Returns:
      The data set with `sizes` and `digests` filled in, and a dict of plain numbers, strings and
      lists:

      - name; n (number of photos); queries, database, train and classes (their numbers).
      - damaged: Names of the photos that do not decode.
      - reasons: What is wrong with each of them.
      - unlabelled: Number of photos without a label.
      - labels_per_photo: Mean number of labels.
      - notes: Notes of the reader.
      - per_class: Number of photos by class.
      - queries_without_relevant: Number of queries that share no label with a database photo.
      - relevant_share: Mean fraction of the database that shares a label with a query.
      - chance_map: Expected average precision of a random ranking.

      The last two are means over the queries that have a relevant photo.

    Raises:
      ValueError: A query is in the database, a training photo is not, a split is empty, a name
        occurs twice, labels are not 0 or 1 or have a wrong shape, or a photo is damaged.
    """
    if on_damaged not in ("refuse", "skip"):
        raise ValueError(f"on_damaged is '{on_damaged}', expected refuse or skip")
    _check_labels(dataset)
    _check_splits(dataset)
    path = pathlib.Path(kept) if kept else None
    found = contents.read(dataset, path)
    damaged, sizes = found.damaged, found.sizes
    if damaged and on_damaged == "refuse":
        raise ValueError(
            f"{dataset.name}: {len(damaged)} of {len(sizes)} photos are damaged, first: "
            f"{next(iter(damaged.values()))}; repair or remove them, or set on_damaged to skip"
        )
    if path:
        contents.save(path, dataset, found)
    names = [str(dataset.ids[row]) for row in damaged]
    known = dataset.sizes.any(1, keepdims=True)
    dataset = dataclasses.replace(
        dataset, sizes=np.where(known, dataset.sizes, sizes), digests=found.digests
    )
    if damaged:
        dataset = _drop(dataset, damaged)
        _check_splits(dataset)
    counts = {
        "name": dataset.name,
        "n": len(dataset.ids),
        "queries": len(dataset.query),
        "database": len(dataset.database),
        "train": len(dataset.train),
        "damaged": names,
        "reasons": list(damaged.values()),
        "notes": list(dataset.notes),
    }
    return dataset, counts | label_counts(dataset)
