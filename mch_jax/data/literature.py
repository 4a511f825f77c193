"""Readers of the literature's data sets, MS-COCO 2014, NUS-WIDE and MIRFLICKR-25K, as published.

Each takes the folder where the published archives lie, as they come or unpacked, and nothing is
unpacked. Splits come from list files where there are some in `lists/`, and are drawn by
`split_seed` elsewhere; the seed of a run does not change them.
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

from mch_jax.data import lists as lists_lib
from mch_jax.data.archives import Files
from mch_jax.data.dataset import Dataset
from mch_jax.data.photos import read_place
from mch_jax.data.splits import counted_split, per_class_split

COCO_ARCHIVES = ("train2014.zip", "val2014.zip", "annotations_trainval2014.zip")
NUSWIDE_ARCHIVES = ("NUS-WIDE.zip", "Groundtruth.zip", "ConceptsList.zip", "ImageList.zip",
                    "Flickr.zip")  # fmt: skip
MIRFLICKR_ARCHIVES = ("mirflickr25k.zip", "mirflickr25k_annotations_v080.zip")

# MIRFLICKR's concepts; those with a second, stricter annotation are in the second list too.
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
class _Photos:
    """What the annotations say, before anything is left out."""

    name: str
    ids: Sequence[str]
    labels: UInt8[np.ndarray, "n c"]
    classes: tuple[str, ...]
    key: Callable[[str], str]
    hint: str  # on the columns of lists


def _base_name(name: str) -> str:
    return pathlib.PurePosixPath(name).name


def _flickr_id(name: str) -> str:
    """Returns the photo's number at Flickr: 0001_2124494179.jpg and 7_2124494179_2a_m.jpg agree."""
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
    photos: _Photos,
    draw: Callable[[np.ndarray], dict[str, np.ndarray]],
    *,
    lists: str,
    keep_unlabelled: bool,
    skip_missing: bool,
) -> Dataset:
    """Returns the data set of the photos that are there and, unless kept, have a label."""
    notes = []
    paths, places = files.find_all(photos.ids)
    keep, on_disk = paths != "", places[:, 0] < 0
    if not keep.all():
        first = photos.ids[int(np.argmin(keep))]
        if not skip_missing or not keep.any():
            raise ValueError(
                f"{photos.name}: {(~keep).sum()} of {len(keep)} photos are not in '{files.root}', "
                f"'{first}' first; fetch them (docs/datasets.md), or set skip_missing to go on "
                "with the others"
            )
        notes.append(f"{(~keep).sum()} photos are missing and left out")
    labelled = photos.labels.any(1)
    if not keep_unlabelled:
        notes += [f"{(keep & ~labelled).sum()} photos without a label are left out"]
        keep &= labelled
    if not keep.any():
        raise ValueError(f"{photos.name}: no photo in '{files.root}' has a label")
    ids, labels = np.array(photos.ids)[keep], photos.labels[keep]
    folder = files.root / (lists or "lists")
    if lists or folder.is_dir():
        rows, remarks = lists_lib.read_splits(folder, ids.tolist(), labels, photos.key, photos.hint)
        notes += [f"splits are those of the lists in {folder.name}", *remarks]
    else:
        rows = draw(labels)
        notes.append("splits are drawn, not a published list's")
    return Dataset(
        name=photos.name,
        classes=photos.classes,
        ids=ids,
        labels=labels,
        read=functools.partial(read_place, files.archives, paths[keep], places[keep], files.root),
        sizes=np.zeros((len(ids), 2), np.int32),
        files=[*files.archives, *(files.root / str(path) for path in paths[keep & on_disk])],
        notes=tuple(notes),
        **rows,
    )


def _coco_part(files: Files, part: str) -> tuple[dict[int, str], list[str], list[list[str]]]:
    """Returns category names by id, and the photos of one half with their categories' names."""
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
            f"coco: {name} is no annotation of instances ({type(error).__name__}: {error}); "
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

    As published: 123,287 photos with 80 categories, 122,218 of them with a label. Columns are the
    categories in alphabetical order, as in the literature's lists, and not in that of COCO's ids.

    Args:
      root: the folder with train2014.zip, val2014.zip and annotations_trainval2014.zip, or their
        content.
      split_seed: draws the splits where there are no lists.
      num_query: queries then.
      num_train: training photos then; the database is every photo that is no query.
      lists: folder with list files, below `root` or absolute; `lists` is taken where it exists.
      keep_unlabelled: keeps photos without a label.
      skip_missing: leaves photos out that are not there, in place of an error.

    Returns:
      The data set.
    """
    files = _open("coco", root, COCO_ARCHIVES)
    ids, found, categories = [], [], {}
    for part in ("train2014", "val2014"):
        names, photos, labels = _coco_part(files, part)
        categories |= names
        ids += photos
        found += labels
    classes = sorted(set(categories.values()))
    column = {name: place for place, name in enumerate(classes)}
    labels = np.zeros((len(ids), len(classes)), np.uint8)
    for row, names in enumerate(found):
        labels[row, [column[name] for name in names]] = 1
    hint = f"expected {len(classes)} columns, COCO's categories in alphabetical order"
    return _assemble(
        files,
        _Photos("coco", ids, labels, tuple(classes), _base_name, hint),
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

    As published: 269,648 photos with 81 concepts, 195,834 of them with one of the 21 most frequent
    ones. Many photos are gone from Flickr: what is passed around has about 223,500.

    Args:
      root: the folder with ImageList/Imagelist.txt, ConceptsList/Concepts81.txt or Concepts81.txt,
        Groundtruth/AllLabels and the photos in Flickr/, each in its zip or unpacked.
      split_seed: draws the splits where there are no lists.
      num_concepts: how many concepts; photos with none of them are unlabelled.
      query_per_class: queries then.
      train_per_class: training photos then; the database is every photo that is no query.
      lists: folder with list files, below `root` or absolute; `lists` is taken where it exists.
      keep_unlabelled: keeps photos without a label.
      skip_missing: leaves photos out that are not there, in place of an error.

    Returns:
      The data set.
    """
    files = _open("nuswide", root, NUSWIDE_ARCHIVES)
    ids = _lines(_text(files, "ImageList/Imagelist.txt", "nuswide").replace("\\", "/"))
    place = "ConceptsList/Concepts81.txt"
    place = place if files.find(place) else "Concepts81.txt"
    concepts = _lines(_text(files, place, "nuswide"))
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
        "of 21 and of 81 concepts are of different photos: set num_concepts to the lists' own"
    )
    classes = tuple(concepts[place] for place in frequent)
    return _assemble(
        files,
        _Photos("nuswide", ids, labels[:, frequent], classes, _flickr_id, hint),
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

    As published: 25,000 photos with 38 labels, 24,581 of them with any. Columns are the files of
    the annotation in alphabetical order: 24 concepts and, for 14 of them, a stricter `_r1`, whose
    photos all have the concept itself, so that similarity is the same with 24 labels and with 38.

    Args:
      root: the folder with mirflickr25k.zip and mirflickr25k_annotations_v080.zip, or their
        content.
      split_seed: draws the splits where there are no lists.
      num_query: queries then.
      num_train: training photos then; the database is every photo that is no query.
      num_photos: photos im1.jpg and so on.
      lists: folder with list files, below `root` or absolute; `lists` is taken where it exists.
      keep_unlabelled: keeps photos without a label.
      skip_missing: leaves photos out that are not there, in place of an error.

    Returns:
      The data set.
    """
    files = _open("mirflickr", root, MIRFLICKR_ARCHIVES)
    classes = sorted([*_CONCEPTS, *(f"{name}_r1" for name in _STRICT)])
    labels = np.zeros((num_photos, len(classes)), np.uint8)
    for column, concept in enumerate(classes):
        numbers = _text(files, f"{concept}.txt", "mirflickr").split()
        if not all(n.isdecimal() and 1 <= int(n) <= num_photos for n in numbers):
            raise ValueError(
                f"mirflickr: {concept}.txt holds other than photo numbers from 1 to {num_photos}"
            )
        labels[[int(n) - 1 for n in numbers], column] = 1
    ids = [f"im{number}.jpg" for number in range(1, num_photos + 1)]
    hint = f"expected {len(classes)} columns, the annotation's files in alphabetical order"
    return _assemble(
        files,
        _Photos("mirflickr", ids, labels, tuple(classes), _base_name, hint),
        lambda labels: counted_split(len(labels), split_seed, num_query, num_train),
        lists=lists,
        keep_unlabelled=keep_unlabelled,
        skip_missing=skip_missing,
    )
