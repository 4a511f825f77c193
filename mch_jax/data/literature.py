"""Readers of the literature's data sets: MS-COCO 2014, NUS-WIDE and MIRFLICKR-25K.

Each reader takes the folder with the published archives, which may be unpacked or not. Splits come
from the list files in `lists/` if there are any, and otherwise are drawn with `split_seed`. They do
not depend on the seed of a run.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mch_jax.data import split_lists
from mch_jax.data.archives import Files
from mch_jax.data.dataset import Dataset
from mch_jax.data.photos import found_bytes, read_found
from mch_jax.data.splits import counted_split, per_class_split

COCO_ARCHIVES = ("train2014.zip", "val2014.zip", "annotations_trainval2014.zip")
NUSWIDE_ARCHIVES = ("NUS-WIDE.zip", "Groundtruth.zip", "ConceptsList.zip", "ImageList.zip",
                    "Flickr.zip")  # fmt: skip
MIRFLICKR_ARCHIVES = ("mirflickr25k.zip", "mirflickr25k_annotations_v080.zip")

# MIRFLICKR's concepts, and those of them that have a second, stricter annotation.
_CONCEPTS = (
    "animals", "baby", "bird", "car", "clouds", "dog", "female", "flower", "food", "indoor",
    "lake", "male", "night", "people", "plant_life", "portrait", "river", "sea", "sky",
    "structures", "sunset", "transport", "tree", "water",
)  # fmt: skip
_STRICT = (
    "baby", "bird", "car", "clouds", "dog", "female", "flower", "male", "night", "people",
    "portrait", "river", "sea", "tree",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Annotations:
    """All annotated photos of a data set, including those that are missing or have no label.

    Attributes:
      dataset: Name of the data set.
      ids: Names of the photos.
      labels: Multi-hot labels.
      classes: Names of the label columns.
      key: Function from a photo's name to the part of it that identifies the photo in lists.
      hint: What the columns of list files should be, for error messages.
    """

    dataset: str
    ids: Sequence[str]
    labels: UInt8[np.ndarray, "n c"]
    classes: tuple[str, ...]
    key: Callable[[str], str]
    hint: str


def _base_name(name: str) -> str:
    return pathlib.PurePosixPath(name).name


def _flickr_id(name: str) -> str:
    """Returns the photo's number at Flickr, 1234 in both 0001_1234.jpg and 7_1234_2a_m.jpg."""
    fields = pathlib.PurePosixPath(name).stem.split("_")
    return fields[1] if len(fields) > 1 else fields[0]


def _open(name: str, root: str | os.PathLike | None, archives: Sequence[str]) -> Files:
    if root is None or not pathlib.Path(root).is_dir():
        raise ValueError(
            f"{name}: root is '{root}', expected the folder with {', '.join(archives)}, or with "
            "what is in them; docs/datasets.md says where to get them"
        )
    return Files(pathlib.Path(root), archives)


def _text(files: Files, name: str, dataset: str) -> str:
    data = files.read(name)
    if data is None:
        raise ValueError(
            f"{dataset}: '{files.root}' has no {name}, in a zip or unpacked; docs/datasets.md says "
            "where to get it"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{dataset}: {name} is not text: {error}") from error


def _assemble(
    files: Files,
    annotated: _Annotations,
    draw: Callable[[np.ndarray], dict[str, np.ndarray]],
    *,
    lists: str,
    keep_unlabelled: bool,
    skip_missing: bool,
) -> Dataset:
    """Returns the data set of the annotated photos that exist and have a label.

    Args:
      files: The files of the data set.
      annotated: The annotated photos.
      draw: Function from labels to the rows of each split, for a data set without lists.
      lists: As in `coco`.
      keep_unlabelled: As in `coco`.
      skip_missing: As in `coco`.

    Raises:
      ValueError: A photo is missing, or the lists are damaged.
    """
    notes = []
    paths, spans = files.find_all(annotated.ids)
    keep, on_disk = paths != "", spans[:, 0] < 0
    if not keep.all():
        first = annotated.ids[int(np.argmin(keep))]
        if not skip_missing or not keep.any():
            raise ValueError(
                f"{annotated.dataset}: {(~keep).sum()} of {len(keep)} photos are not in "
                f"'{files.root}', '{first}' first; fetch them (docs/datasets.md), or set "
                "skip_missing to leave them out"
            )
        notes.append(f"{(~keep).sum()} photos are missing and left out")
    labelled = annotated.labels.any(1)
    if not keep_unlabelled:
        notes += [f"{(keep & ~labelled).sum()} photos without a label are left out"]
        keep &= labelled
    if not keep.any():
        raise ValueError(f"{annotated.dataset}: no photo in '{files.root}' has a label")
    ids, labels = np.array(annotated.ids)[keep], annotated.labels[keep]
    folder = files.root / (lists or "lists")
    if lists or folder.is_dir():
        rows, remarks = split_lists.read_splits(
            folder, ids.tolist(), labels, annotated.key, annotated.hint
        )
        notes += [f"splits are those of the lists in {folder.name}", *remarks]
    else:
        rows = draw(labels)
        notes.append("splits are drawn at random, not read from published lists")
    place = (files.root, files.archives, paths[keep], spans[keep])
    return Dataset(
        name=annotated.dataset,
        classes=annotated.classes,
        ids=ids,
        labels=labels,
        read=functools.partial(read_found, *place),
        content=functools.partial(found_bytes, *place),
        sizes=np.zeros((len(ids), 2), np.int32),
        files=[*files.archives, *(files.root / str(path) for path in paths[keep & on_disk])],
        notes=tuple(notes),
        **rows,
    )


def _coco_part(files: Files, part: str) -> tuple[dict[int, str], list[str], list[list[str]]]:
    """Returns the annotations of one part of COCO, `train2014` or `val2014`.

    Returns:
      Category names by id, names of the photos, and category names of each photo.
    """
    name = f"annotations/instances_{part}.json"
    try:
        content: dict[str, Any] = json.loads(_text(files, name, "coco"))
        categories = {entry["id"]: entry["name"] for entry in content["categories"]}
        photos = {entry["id"]: f"{part}/{entry['file_name']}" for entry in content["images"]}
        found = collections.defaultdict(set)
        for entry in content["annotations"]:
            found[entry["image_id"]].add(categories[entry["category_id"]])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"coco: {name} is not an annotation of instances ({type(error).__name__}: {error}); "
            "expected the one in annotations_trainval2014.zip"
        ) from error
    return categories, list(photos.values()), [sorted(found[number]) for number in photos]


def coco(
    root: str | os.PathLike | None = None,
    *,
    split_seed: int = 0,
    num_query: int = 5000,
    num_train: int = 10000,
    lists: str = "",
    keep_unlabelled: bool = False,
    skip_missing: bool = False,
) -> Dataset:
    """Reads MS-COCO 2014, training and validation images together.

    The published archives have 123,287 photos with 80 categories; 122,218 of the photos have a
    label. Columns are the categories in alphabetical order, as in the lists of the literature, not
    in the order of COCO's ids.

    Args:
      root: Folder with train2014.zip, val2014.zip and annotations_trainval2014.zip, or their
        content.
      split_seed: Seed of the splits if there are no lists.
      num_query: Number of queries if there are no lists.
      num_train: Number of training photos if there are no lists. The database is every photo that
        is not a query.
      lists: Folder with list files, relative to `root` or absolute. Defaults to `lists` if that
        folder exists.
      keep_unlabelled: Whether to keep photos without a label.
      skip_missing: Whether to leave out photos that are missing instead of raising an error.

    Returns:
      The data set.

    Raises:
      ValueError: A file is missing or damaged, or there are too few photos for the splits.
    """
    files = _open("coco", root, COCO_ARCHIVES)
    ids, found, categories = [], [], {}
    for part in ("train2014", "val2014"):
        names, photos, labels = _coco_part(files, part)
        categories |= names
        ids += photos
        found += labels
    classes = sorted(set(categories.values()))
    column = {name: index for index, name in enumerate(classes)}
    labels = np.zeros((len(ids), len(classes)), np.uint8)
    for row, names in enumerate(found):
        labels[row, [column[name] for name in names]] = 1
    hint = f"expected {len(classes)} columns, COCO's categories in alphabetical order"
    return _assemble(
        files,
        _Annotations("coco", ids, labels, tuple(classes), _base_name, hint),
        lambda labels: counted_split(len(labels), split_seed, num_query, num_train),
        lists=lists,
        keep_unlabelled=keep_unlabelled,
        skip_missing=skip_missing,
    )


def nuswide(
    root: str | os.PathLike | None = None,
    *,
    split_seed: int = 0,
    num_concepts: int = 21,
    query_per_class: int = 100,
    train_per_class: int = 500,
    lists: str = "",
    keep_unlabelled: bool = False,
    skip_missing: bool = False,
) -> Dataset:
    """Reads NUS-WIDE with its most frequent concepts, in order of frequency.

    The published lists have 269,648 photos with 81 concepts; 195,834 of the photos have one of the
    21 most frequent concepts. Many photos have been removed from Flickr, and common copies have
    about 223,500.

    Args:
      root: Folder with ImageList/Imagelist.txt, ConceptsList/Concepts81.txt or Concepts81.txt,
        Groundtruth/AllLabels and the photos in Flickr/, each in its zip or unpacked.
      split_seed: Seed of the splits if there are no lists.
      num_concepts: Number of concepts to use. Photos with none of them are unlabelled.
      query_per_class: Number of queries per class if there are no lists.
      train_per_class: Number of training photos per class if there are no lists. The database is
        every photo that is not a query.
      lists: Folder with list files, relative to `root` or absolute. Defaults to `lists` if that
        folder exists.
      keep_unlabelled: Whether to keep photos without a label.
      skip_missing: Whether to leave out photos that are missing instead of raising an error.

    Returns:
      The data set.

    Raises:
      ValueError: A file is missing or damaged, or there are too few photos for the splits.
    """
    files = _open("nuswide", root, NUSWIDE_ARCHIVES)
    ids = _lines(_text(files, "ImageList/Imagelist.txt", "nuswide").replace("\\", "/"))
    path = "ConceptsList/Concepts81.txt"
    path = path if files.find(path) else "Concepts81.txt"
    concepts = _lines(_text(files, path, "nuswide"))
    if not 1 <= num_concepts <= len(concepts):
        raise ValueError(f"num_concepts is {num_concepts}, expected 1 to {len(concepts)}")
    labels = np.empty((len(ids), len(concepts)), np.uint8)
    for column, concept in enumerate(concepts):
        name = f"Groundtruth/AllLabels/Labels_{concept}.txt"
        values = np.array(_text(files, name, "nuswide").split())
        if len(values) != len(ids) or not np.isin(values, ("0", "1")).all():
            raise ValueError(
                f"nuswide: {name} has {len(values)} entries, expected {len(ids)} of 0 or 1, one "
                "for each line of Imagelist.txt"
            )
        labels[:, column] = values == "1"
    frequent = np.argsort(-labels.sum(0, dtype=np.int64), kind="stable")[:num_concepts]
    hint = (
        f"expected {num_concepts} columns, the most frequent of {len(concepts)} concepts. Lists "
        "for 21 and for 81 concepts contain different photos; set num_concepts to match the lists"
    )
    classes = tuple(concepts[index] for index in frequent)
    return _assemble(
        files,
        _Annotations("nuswide", ids, labels[:, frequent], classes, _flickr_id, hint),
        lambda labels: per_class_split(labels, split_seed, query_per_class, train_per_class),
        lists=lists,
        keep_unlabelled=keep_unlabelled,
        skip_missing=skip_missing,
    )


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def mirflickr(
    root: str | os.PathLike | None = None,
    *,
    split_seed: int = 0,
    num_query: int = 5000,
    num_train: int = 10000,
    num_photos: int = 25000,
    lists: str = "",
    keep_unlabelled: bool = False,
    skip_missing: bool = False,
) -> Dataset:
    """Reads MIRFLICKR-25K with annotations v080.

    The published archives have 25,000 photos with 38 labels; 24,581 of the photos have a label.
    Columns are the annotation files in alphabetical order: 24 concepts and, for 14 of them, a
    stricter annotation `_r1`. Photos with a stricter label also have the concept itself, so that
    similarity is the same with 24 labels as with 38.

    Args:
      root: Folder with mirflickr25k.zip and mirflickr25k_annotations_v080.zip, or their
        content.
      split_seed: Seed of the splits if there are no lists.
      num_query: Number of queries if there are no lists.
      num_train: Number of training photos if there are no lists. The database is every photo that
        is not a query.
      num_photos: Number of photos. They are named im1.jpg, im2.jpg and so on.
      lists: Folder with list files, relative to `root` or absolute. Defaults to `lists` if that
        folder exists.
      keep_unlabelled: Whether to keep photos without a label.
      skip_missing: Whether to leave out photos that are missing instead of raising an error.

    Returns:
      The data set.

    Raises:
      ValueError: A file is missing or damaged, or there are too few photos for the splits.
    """
    files = _open("mirflickr", root, MIRFLICKR_ARCHIVES)
    classes = sorted([*_CONCEPTS, *(f"{name}_r1" for name in _STRICT)])
    labels = np.zeros((num_photos, len(classes)), np.uint8)
    for column, concept in enumerate(classes):
        numbers = _text(files, f"{concept}.txt", "mirflickr").split()
        if not all(n.isdecimal() and 1 <= int(n) <= num_photos for n in numbers):
            raise ValueError(
                f"mirflickr: {concept}.txt is wrong, expected photo numbers from 1 to {num_photos}"
            )
        labels[[int(n) - 1 for n in numbers], column] = 1
    ids = [f"im{number}.jpg" for number in range(1, num_photos + 1)]
    hint = f"expected {len(classes)} columns, the annotation's files in alphabetical order"
    return _assemble(
        files,
        _Annotations("mirflickr", ids, labels, tuple(classes), _base_name, hint),
        lambda labels: counted_split(len(labels), split_seed, num_query, num_train),
        lists=lists,
        keep_unlabelled=keep_unlabelled,
        skip_missing=skip_missing,
    )
