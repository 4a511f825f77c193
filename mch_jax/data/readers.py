"""Readers of the built-in scenes, of the coco18 pack, and of a folder of one's own."""

import functools
import os
import pathlib

import numpy as np

from mch_jax.data import scenes as scenes_lib
from mch_jax.data.archives import tar_members
from mch_jax.data.dataset import Dataset
from mch_jax.data.photos import read_file, read_place
from mch_jax.data.splits import random_split, split_rows
from mch_jax.data.tables import read_lists, read_table

_COCO18_ROOT = "../shared/data/coco18"


def scenes(
    *,
    seed: int = 0,
    size: int = 128,
    num_train: int = 2000,
    num_database: int = 2500,
    num_query: int = 400,
) -> Dataset:
    """Returns the built-in data set of composed scenes; see `mch_jax.data.scenes`.

    Args:
      seed: every scene is a function of it and of its row.
      size: side of a scene in pixels.
      num_train: training scenes; they are in the database.
      num_database: further scenes of the database.
      num_query: queries.

    Returns:
      The data set; `read.pieces(row)` tells which parts of which photos a scene shows.
    """
    counts = {"num_train": num_train, "num_database": num_database, "num_query": num_query}
    for name, value in {"seed": seed, "size": size, **counts}.items():
        least = {"seed": 0, "size": 32, "num_database": 0}.get(name, 1)
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    ends = np.cumsum([num_train, num_database, num_query])
    composer = scenes_lib.Composer(seed=seed, size=size, num_train=num_train)
    names = ("train", "database", "query")
    ids = [f"{s}/{i:05d}" for s, k in zip(names, counts.values(), strict=True) for i in range(k)]
    return Dataset(
        name="scenes",
        classes=scenes_lib.CLASSES,
        ids=np.array(ids),
        labels=np.stack([composer.labels(row) for row in range(int(ends[2]))]),
        query=np.arange(ends[1], ends[2]),
        database=np.arange(ends[1]),
        train=np.arange(ends[0]),
        read=composer,
        sizes=np.full((len(ids), 2), size, np.int32),
        files=(),
    )


def coco18(root: str | os.PathLike | None = None) -> Dataset:
    """Reads the coco18 pack, 9,600 MS-COCO photos with 18 labels, straight from its tar.

    Args:
      root: the folder with images.tar and labels.csv; by default what the environment variable
        MCH_COCO18 says, else ../shared/data/coco18.

    Returns:
      The data set.
    """
    folder = pathlib.Path(root or os.environ.get("MCH_COCO18") or _COCO18_ROOT)
    path = folder / "images.tar"
    if not path.is_file() or not (folder / "labels.csv").is_file():
        raise ValueError(
            f"coco18: '{folder}' does not hold images.tar and labels.csv; "
            "give the pack's folder as root or in the environment variable MCH_COCO18"
        )
    ids, classes, labels, splits = read_table(folder / "labels.csv")
    if splits is None:
        raise ValueError(f"coco18: '{folder / 'labels.csv'}' has no column split")
    members = tar_members(path)
    missing = [name for name in ids.tolist() if name not in members]
    if missing:
        raise ValueError(
            f"coco18: {len(missing)} photos of labels.csv are not in '{path}', "
            f"'{missing[0]}' first; take both files from the same pack"
        )
    places = np.array([members[name] for name in ids.tolist()], np.int64)
    return Dataset(
        name="coco18",
        classes=classes,
        ids=ids,
        labels=labels,
        read=functools.partial(read_place, [path.absolute()], ids, places, folder),
        sizes=np.zeros((len(ids), 2), np.int32),
        files=(path,),
        **split_rows(splits),
    )


def folder(
    root: str | os.PathLike | None = None,
    *,
    seed: int = 0,
    query_fraction: float = 0.1,
    train_fraction: float = 0.4,
) -> Dataset:
    """Reads a folder of one's own.

    The folder holds labels.csv with the header `file,split,CLASS,...`, or lists `query.txt`
    (or `test.txt`), `database.txt` and `train.txt` with lines `path l1 ... lN` and, if wanted,
    `classes.txt` with a class name a line. In labels.csv, `train` rows are in the database by
    themselves; the columns width, height and caption are passed over; without a column split the
    splits are drawn at random. Of an absolute path in a list the part below `root` counts.

    Args:
      root: the folder.
      seed: draws the splits where labels.csv has none.
      query_fraction: share of the photos that become queries then.
      train_fraction: share of the other photos that are trained on then.

    Returns:
      The data set.
    """
    if root is None or not pathlib.Path(root).is_dir():
        raise ValueError(f"folder: root is '{root}', expected an existing folder of photos")
    path = pathlib.Path(root)
    if (path / "labels.csv").is_file():
        ids, classes, labels, splits = read_table(path / "labels.csv")
        if splits is None:
            rows = random_split(len(ids), seed, query_fraction, train_fraction)
        else:
            rows = split_rows(splits)
    else:
        ids, classes, labels, rows = read_lists(path)
    return Dataset(
        name=path.resolve().name or "folder",
        classes=classes,
        ids=ids,
        labels=labels,
        read=functools.partial(read_file, path.absolute(), ids),
        sizes=np.zeros((len(ids), 2), np.int32),
        files=[path / name for name in ids.tolist()],
        **rows,
    )
