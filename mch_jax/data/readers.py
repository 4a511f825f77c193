"""Readers of the built-in scenes, of the coco18 pack, and of a folder of photos."""

import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from mch_jax.data import composer, sources
from mch_jax.data.archives import tar_members
from mch_jax.data.dataset import Dataset
from mch_jax.data.label_files import has_list, read_lists, read_table
from mch_jax.data.photos import file_bytes, found_bytes, read_file, read_found
from mch_jax.data.splits import limited, random_split, split_rows, without_classes

_COCO18_ROOT = "../shared/data/coco18"


def scenes(
    *,
    seed: int = 0,
    size: int = 128,
    num_train: int = 2000,
    num_database: int = 2500,
    num_query: int = 400,
) -> Dataset:
    """Returns the built-in data set of composed scenes; see `mch_jax.data.composer`.

    Args:
      seed: Seed of the scenes. A scene depends on it, on `size` and on its row only.
      size: Side of a scene in pixels.
      num_train: Number of training scenes. They are in the database.
      num_database: Number of further scenes in the database.
      num_query: Number of queries.

    Returns:
      The data set. `read.pieces(row)` returns which parts of which photos a scene shows.

    Raises:
      ValueError: A number is too small, or the packages with the photos are not installed.
    """
    counts = {"num_train": num_train, "num_database": num_database, "num_query": num_query}
    for name, value in {"seed": seed, "size": size, **counts}.items():
        least = {"seed": 0, "size": 32, "num_database": 0}.get(name, 1)
        if type(value) is not int or value < least:
            raise ValueError(f"{name} is {value!r}, expected at least {least}")
    if size > composer.MAX_SIZE:
        raise ValueError(f"size is {size}, expected at most {composer.MAX_SIZE} pixels")
    ends = np.cumsum([num_train, num_database, num_query])
    scene = composer.Composer(seed=seed, size=size, num_train=num_train)
    names = ("train", "database", "query")
    ids = [f"{s}/{i:05d}" for s, k in zip(names, counts.values(), strict=True) for i in range(k)]
    return Dataset(
        name="scenes",
        classes=composer.CLASSES,
        ids=np.array(ids),
        labels=np.stack([scene.labels(row) for row in range(int(ends[2]))]),
        query=np.arange(ends[1], ends[2]),
        database=np.arange(ends[1]),
        train=np.arange(ends[0]),
        read=scene,
        sizes=np.full((len(ids), 2), size, np.int32),
        files=(),
    )


def coco18(
    root: str | os.PathLike | None = None,
    *,
    hidden_classes: Sequence[str] = (),
    num_train: int | None = None,
) -> Dataset:
    """Reads the coco18 pack, 9,600 MS-COCO photos with 18 labels, without unpacking its tar.

    Args:
      root: Folder with images.tar and labels.csv. Defaults to the environment variable MCH_COCO18,
        or else to ../shared/data/coco18.
      hidden_classes: Names of classes that training never sees: the photos that have one of them
        leave the training set and stay in the database.
      num_train: Number of training photos; the others leave the training set and stay in the
        database. Defaults to all. A smaller training set is part of a larger one.

    Returns:
      The data set.

    Raises:
      ValueError: A file is missing or damaged, the tar lacks a photo of the table, a hidden class
        is not a class, or there are fewer than `num_train` training photos.
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
    spans = np.array([members[name] for name in ids.tolist()], np.int64)
    rows = split_rows(splits)
    rows["train"] = without_classes(rows["train"], labels, classes, hidden_classes)
    if num_train is not None:
        rows["train"] = limited(rows["train"], num_train)
    return Dataset(
        name="coco18",
        classes=classes,
        ids=ids,
        labels=labels,
        read=functools.partial(read_found, folder, [path.absolute()], ids, spans),
        content=functools.partial(found_bytes, folder, [path.absolute()], ids, spans),
        sizes=np.zeros((len(ids), 2), np.int32),
        files=(path,),
        query=rows["query"],
        database=rows["database"],
        train=rows["train"],
    )


def folder(
    root: str | os.PathLike | None = None,
    *,
    seed: int = 0,
    query_fraction: float = 0.1,
    train_fraction: float = 0.4,
    hidden_classes: Sequence[str] = (),
) -> Dataset:
    """Reads a folder of photos with their labels.

    The folder contains either labels.csv with the header `file,split,CLASS,...`, or the lists
    `query.txt` (or `test.txt`), `database.txt` and `train.txt` with lines `path l1 ... lN` and
    optionally `classes.txt` with one class name per line. In labels.csv, rows of `train` are also
    in the database, and the columns width, height and caption are ignored. Without a column split
    the splits are drawn at random. An absolute path in a list is taken relative to `root`.

    Without labels.csv and lists, the data set is every photo in the folder and its subfolders, has
    no classes, and its splits are drawn at random.

    Args:
      root: The folder.
      seed: Seed of the splits, if they are drawn.
      query_fraction: Fraction of the photos that become queries, if splits are drawn.
      train_fraction: Fraction of the database that is the training set, if splits are drawn.
      hidden_classes: Names of classes that training never sees, as for `coco18`.

    Returns:
      The data set.

    Raises:
      ValueError: A file is missing or damaged, or a hidden class is not a class.
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
    elif not has_list(path) and (found := sources.find_files(path)):
        ids, classes = np.array([photo.id for photo in found]), ()
        labels = np.zeros((len(ids), 0), np.uint8)
        rows = random_split(len(ids), seed, query_fraction, train_fraction)
    else:
        ids, classes, labels, rows = read_lists(path)
    rows["train"] = without_classes(rows["train"], labels, classes, hidden_classes)
    return Dataset(
        name=path.resolve().name or "folder",
        classes=classes,
        ids=ids,
        labels=labels,
        read=functools.partial(read_file, path.absolute(), ids),
        content=functools.partial(file_bytes, path.absolute(), ids),
        sizes=np.zeros((len(ids), 2), np.int32),
        files=[path / name for name in ids.tolist()],
        query=rows["query"],
        database=rows["database"],
        train=rows["train"],
    )
