"""Data sets: readers, the audit every one of them passes, and batches.

A data set is names, labels and three lists of rows in memory, and a function that decodes one
photo. Rows are numbers into `ids`; the database holds the training rows and no query row.
"""

import collections
import csv
import dataclasses
import functools
import inspect
import io
import os
import pathlib
import struct
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any

import grain
import numpy as np
from jaxtyping import Int32, Int64, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mch_jax import scenes as scenes_lib

# A photo with more pixels is refused before it is decoded: a small file can hold a huge image.
MAX_PIXELS = 80_000_000
# Pillow knows more, some of which start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000")
# Columns of labels.csv that are no classes.
_EXTRA_COLUMNS = ("width", "height", "caption")
_SPLITS = ("query", "database", "train")
_LISTS = (("query.txt", "test.txt"), ("database.txt",), ("train.txt",))
_COCO18_ROOT = "../shared/data/coco18"
# What Pillow's readers raise for files that are cut off, scrambled or too large.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where warnings are errors
)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Photos by name, with their labels and the three splits.

    Attributes:
      name: the data set's name.
      classes: names of the label columns.
      ids: the photos' names; no name occurs twice.
      labels: multi-hot labels.
      query: rows of the queries.
      database: rows of the database, `train` among them.
      train: rows that training sees.
      read: decodes the photo of one row to RGB, upright; safe to call from several threads.
        Raises ValueError for a photo that doesn't decode.
      sizes: width and height of each photo in pixels; zeros before `audit`.
    """

    name: str
    classes: tuple[str, ...]
    ids: np.ndarray
    labels: UInt8[np.ndarray, "n c"]
    query: Int64[np.ndarray, " q"]
    database: Int64[np.ndarray, " d"]
    train: Int64[np.ndarray, " t"]
    read: Callable[[int], np.ndarray]
    sizes: Int32[np.ndarray, "n 2"]


# ---- photos --------------------------------------------------------------------------------------


def _rgb(image: Image.Image) -> Image.Image:
    """Returns an 8-bit RGB image; transparency is laid on white, 16 bits lose the lower 8."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        values = values >> 8 if values.max(initial=0) > 255 else values
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def decode(data: bytes, name: str = "photo") -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file's bytes to RGB, turned upright by its EXIF orientation.

    Args:
      data: the file's bytes, in one of FORMATS.
      name: what the error calls the file.

    Returns:
      The pixels.

    Raises:
      ValueError: the bytes are no whole image, or it has more than MAX_PIXELS pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise ValueError(f"{pixels:,} pixels, at most {MAX_PIXELS:,} are decoded")
            image.load()
            return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except _DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"expected one of {', '.join(FORMATS)}"
        raise ValueError(f"'{name}' does not decode: {reason}") from error


def _read_file(root: pathlib.Path, ids: np.ndarray, row: int) -> np.ndarray:
    name = str(ids[row])
    try:
        data = (root / name).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"'{name}' does not open: {reason}") from error
    return decode(data, name)


def _read_tar(path: pathlib.Path, ids: np.ndarray, spans: np.ndarray, row: int) -> np.ndarray:
    """Decodes a tar's member from its offset and length; no file position is shared."""
    offset, length = spans[row].tolist()
    file = os.open(path, os.O_RDONLY)
    try:
        return decode(os.pread(file, length, offset), str(ids[row]))
    finally:
        os.close(file)


def _resize(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Squashes a photo to a square with Pillow's antialiased bilinear filter."""
    if image.shape[:2] == (size, size):
        return image
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)


# ---- readers -------------------------------------------------------------------------------------


def _inside(name: str, source: str) -> str:
    """Returns a relative name with forward slashes; a name that leaves the folder is refused."""
    path = pathlib.PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"{source}: '{name}' leads outside the data folder; "
            "names must be relative and without '..'"
        )
    return str(path)


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8 text: {error}; save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"'{path}' does not open: {error.strerror}") from error


def _multi_hot(values: list[list[str]], source: str, first_line: int) -> UInt8[np.ndarray, "n c"]:
    for line, row in enumerate(values, first_line):
        bad = next((value for value in row if value not in ("0", "1")), None)
        if bad is not None:
            raise ValueError(f"{source} line {line}: label '{bad}', expected 0 or 1")
    return np.array(values, np.uint8)


def _read_table(
    path: pathlib.Path,
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray, list[str] | None]:
    """Reads labels.csv: names, classes, labels and, where there is such a column, splits."""
    try:
        header, *lines = [row for row in csv.reader(io.StringIO(_text(path))) if row]
    except (csv.Error, ValueError) as error:
        raise ValueError(f"'{path}' is not a table with a header line: {error}") from error
    classes = tuple(c for c in header if c not in ("file", "split", *_EXTRA_COLUMNS))
    if header[0] != "file" or not classes or len(set(header)) < len(header):
        raise ValueError(
            f"'{path}' starts with '{','.join(header)[:80]}'; expected a header "
            "file,split,CLASS,... (split may be left out) with different names"
        )
    if not lines:
        raise ValueError(f"'{path}' lists no photo; expected one line a photo below the header")
    for line, row in enumerate(lines, 2):
        if len(row) != len(header):
            raise ValueError(
                f"'{path}' line {line} has {len(row)} columns, expected {len(header)} "
                "as in the header"
            )
    columns = [header.index(name) for name in classes]
    labels = _multi_hot([[row[i] for i in columns] for row in lines], f"'{path}'", 2)
    ids = np.array([_inside(row[0], f"'{path}'") for row in lines])
    if "split" not in header:
        return ids, classes, labels, None
    splits = [row[header.index("split")] for row in lines]
    wrong = next((split for split in splits if split not in _SPLITS), None)
    if wrong is not None:
        raise ValueError(f"'{path}' names split '{wrong}', expected one of {', '.join(_SPLITS)}")
    return ids, classes, labels, splits


def _split_rows(splits: list[str]) -> dict[str, np.ndarray]:
    """Returns the rows of each split; a table's `train` rows belong to the database too."""
    names = np.array(splits)
    return {
        "query": np.flatnonzero(names == "query"),
        "database": np.flatnonzero(names != "query"),
        "train": np.flatnonzero(names == "train"),
    }


def _random_split(
    n: int, seed: int, query_fraction: float, train_fraction: float
) -> dict[str, np.ndarray]:
    """Draws the splits of a folder that names none; `train_fraction` is of the database."""
    for name, value in (("query_fraction", query_fraction), ("train_fraction", train_fraction)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}, expected a fraction above 0, at most 1")
    order = np.random.default_rng(seed).permutation(n)
    num_query = max(1, round(n * query_fraction))
    num_train = max(1, round((n - num_query) * train_fraction))
    return {
        "query": np.sort(order[:num_query]),
        "database": np.sort(order[num_query:]),
        "train": np.sort(order[num_query : num_query + num_train]),
    }


def _below_root(root: pathlib.Path) -> Callable[[str, str], str]:
    """Returns a function that turns a list's path into a name below `root`.

    Published lists carry their author's absolute paths. Of such a path the longest end whose
    folder exists below `root` counts; where none does, the file's own name.
    """

    @functools.cache
    def folder(parent: pathlib.PurePosixPath) -> pathlib.PurePosixPath:
        parts = parent.parts[1:] if parent.is_absolute() else parent.parts
        ends = (pathlib.PurePosixPath(*parts[start:]) for start in range(len(parts) + 1))
        return next(end for end in ends if (root / end).is_dir())

    def name(written: str, source: str) -> str:
        path = pathlib.PurePosixPath(written)
        if path.is_absolute() and path.is_relative_to(root.resolve()):
            path = path.relative_to(root.resolve())
        if ".." not in path.parts and path.parts:
            path = folder(path.parent) / path.name
        return _inside(str(path), source)

    return name


def _read_list(path: pathlib.Path, name: Callable[[str, str], str]) -> dict[str, np.ndarray]:
    """Reads `path l1 ... lN` lines to labels by photo name; a path may hold spaces."""
    lines = [line for line in _text(path).splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"'{path}' lists no photo; expected lines 'path l1 ... lN'")
    tokens = lines[0].split()
    width = next((i for i, token in enumerate(reversed(tokens)) if token not in ("0", "1")), 0)
    if not width:
        raise ValueError(f"'{path}' line 1: '{lines[0][:80]}', expected 'path l1 ... lN'")
    rows = [line.strip().rsplit(maxsplit=width) for line in lines]
    for line, row in enumerate(rows, 1):
        # A line with a label too many leaves one at the end of its path.
        if len(row) != width + 1 or row[0].split()[-1] in ("0", "1"):
            raise ValueError(
                f"'{path}' line {line}: '{lines[line - 1][:80]}', expected a path and "
                f"{width} labels as in line 1"
            )
    labels = _multi_hot([row[1:] for row in rows], f"'{path}'", 1)
    names = [name(row[0], f"'{path}'") for row in rows]
    if len(set(names)) < len(names):
        twice = collections.Counter(names).most_common(1)[0][0]
        raise ValueError(f"'{path}' lists '{twice}' twice; remove one of the lines")
    return dict(zip(names, labels, strict=True))


def _read_lists(
    root: pathlib.Path,
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray, dict[str, np.ndarray]]:
    """Reads query.txt, database.txt and train.txt as the literature writes them."""
    name = _below_root(root)
    labels: dict[str, np.ndarray] = {}
    rows: dict[str, np.ndarray] = {}
    for split, choices in zip(_SPLITS, _LISTS, strict=True):
        paths = [root / choice for choice in choices if (root / choice).is_file()]
        if not paths:
            raise ValueError(
                f"'{root}' has neither labels.csv nor all of query.txt, database.txt, train.txt "
                f"({choices[0]} is missing); see the documentation on a folder of one's own"
            )
        listed = _read_list(paths[0], name)
        for file, values in listed.items():
            if not np.array_equal(labels.setdefault(file, values), values):
                raise ValueError(
                    f"'{paths[0]}' gives '{file}' labels of another kind than an earlier list; "
                    "expected the same labels wherever a photo is listed"
                )
        order = {file: row for row, file in enumerate(labels)}
        rows[split] = np.array([order[file] for file in listed], np.int64)
    table = list(labels.values())
    if len({len(values) for values in table}) > 1:
        raise ValueError(f"the lists in '{root}' have different numbers of labels a line")
    classes = tuple(f"class {i}" for i in range(len(table[0])))
    if (root / "classes.txt").is_file():
        classes = tuple(_text(root / "classes.txt").split("\n"))
        classes = tuple(c.strip() for c in classes if c.strip())
    return np.array(list(labels)), classes, np.stack(table), rows


def scenes(
    *,
    seed: int = 0,
    size: int = 128,
    num_train: int = 2000,
    num_database: int = 2500,
    num_query: int = 400,
) -> Dataset:
    """Returns the built-in data set of composed scenes; see `mch_jax.scenes`.

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
        sizes=np.zeros((len(ids), 2), np.int32),
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
    ids, classes, labels, splits = _read_table(folder / "labels.csv")
    if splits is None:
        raise ValueError(f"coco18: '{folder / 'labels.csv'}' has no column split")
    try:
        with tarfile.open(path, "r:") as tar:
            members = {m.name: (m.offset_data, m.size) for m in tar if m.isfile()}
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"coco18: '{path}' is not a whole, uncompressed tar: {error}") from error
    missing = [name for name in ids.tolist() if name not in members]
    if missing:
        raise ValueError(
            f"coco18: {len(missing)} photos of labels.csv are not in '{path}', "
            f"'{missing[0]}' first; take both files from the same pack"
        )
    spans = np.array([members[name] for name in ids.tolist()], np.int64)
    return Dataset(
        name="coco18",
        classes=classes,
        ids=ids,
        labels=labels,
        read=functools.partial(_read_tar, path.absolute(), ids, spans),
        sizes=np.zeros((len(ids), 2), np.int32),
        **_split_rows(splits),
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
        ids, classes, labels, splits = _read_table(path / "labels.csv")
        if splits is None:
            rows = _random_split(len(ids), seed, query_fraction, train_fraction)
        else:
            rows = _split_rows(splits)
    else:
        ids, classes, labels, rows = _read_lists(path)
    return Dataset(
        name=path.resolve().name or "folder",
        classes=classes,
        ids=ids,
        labels=labels,
        read=functools.partial(_read_file, path.absolute(), ids),
        sizes=np.zeros((len(ids), 2), np.int32),
        **rows,
    )


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


# ---- audit ---------------------------------------------------------------------------------------


def _check_splits(dataset: Dataset) -> None:
    """Raises ValueError unless the names and the rows of the splits are as Dataset promises."""
    n = len(dataset.ids)
    names, counts = np.unique(dataset.ids, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"{dataset.name}: {(counts > 1).sum()} photos are listed twice, "
            f"'{names[counts > 1][0]}' first; list each once"
        )
    for split in _SPLITS:
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
    expected = (len(dataset.ids), len(dataset.classes))
    if dataset.labels.shape != expected:
        raise ValueError(
            f"{dataset.name}: labels have the shape {dataset.labels.shape}, expected {expected}: "
            "a row for each photo, a column for each class"
        )
    if dataset.labels.max(initial=0) > 1:
        raise ValueError(f"{dataset.name}: label {dataset.labels.max()}, expected 0 or 1")


def _open_all(dataset: Dataset) -> tuple[Int32[np.ndarray, "n 2"], dict[int, str]]:
    """Decodes every photo; returns their sizes and, by row, what is wrong with damaged ones."""

    def check(row: int) -> tuple[int, int] | str:
        try:
            height, width, _ = dataset.read(row).shape
        except ValueError as error:
            return str(error)
        return width, height

    with futures.ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="audit") as pool:
        found = list(pool.map(check, range(len(dataset.ids))))
    damaged = {row: result for row, result in enumerate(found) if isinstance(result, str)}
    sizes = np.array([(0, 0) if isinstance(size, str) else size for size in found], np.int32)
    return sizes, damaged


def _read_kept(read: Callable[[int], np.ndarray], kept: np.ndarray, row: int) -> np.ndarray:
    return read(int(kept[row]))


def _drop(dataset: Dataset, rows: Iterable[int]) -> Dataset:
    """Returns the data set without some rows; the others move up."""
    keep = np.ones(len(dataset.ids), bool)
    keep[list(rows)] = False
    moved = np.cumsum(keep) - 1
    splits = {name: getattr(dataset, name) for name in _SPLITS}
    return dataclasses.replace(
        dataset,
        ids=dataset.ids[keep],
        labels=dataset.labels[keep],
        sizes=dataset.sizes[keep],
        read=functools.partial(_read_kept, dataset.read, np.flatnonzero(keep)),
        **{name: moved[rows[keep[rows]]] for name, rows in splits.items()},
    )


def _chance(dataset: Dataset) -> dict[str, Any]:
    """Counts relevant pairs: what a ranking at random achieves, over queries with any."""
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
    # The k-th of n places, held by a relevant item, has on average (r - 1) (k - 1) / (n - 1)
    # relevant ones before it.
    before = (some - 1) / max(n - 1, 1)
    harmonic = (1 / np.arange(1, n + 1)).sum() / n
    expected = before + harmonic * (1 - before)
    return {
        "queries_without_relevant": int((relevant == 0).sum()),
        "relevant_share": float(some.mean() / n) if len(some) else 0.0,
        "chance_map": float(expected.mean()) if len(some) else 0.0,
    }


def audit(dataset: Dataset, on_damaged: str = "refuse") -> tuple[Dataset, dict[str, Any]]:
    """Checks a data set as a whole and decodes every photo once.

    Args:
      dataset: what a reader returned.
      on_damaged: `refuse` raises for photos that don't decode, `skip` drops them from all splits.

    Returns:
      The data set with `sizes` filled in, and the counts as a dict of plain numbers, strings and
      lists: name, n, queries, database, train, classes, damaged (names), reasons (what was wrong
      with each), unlabelled (photos without a label), labels_per_photo, per_class (photos by
      class), queries_without_relevant, relevant_share (mean share of the database that shares a
      label with a query) and chance_map (expected average precision of a ranking at random), the
      last two over the queries that have a relevant photo.

    Raises:
      ValueError: a query is in the database, a training photo is not, a split is empty, a name
        occurs twice, labels aren't 0 or 1 or have a wrong shape, or a photo is damaged.
    """
    if on_damaged not in ("refuse", "skip"):
        raise ValueError(f"on_damaged is '{on_damaged}', expected refuse or skip")
    _check_labels(dataset)
    _check_splits(dataset)
    sizes, damaged = _open_all(dataset)
    if damaged and on_damaged == "refuse":
        raise ValueError(
            f"{dataset.name}: {len(damaged)} of {len(sizes)} photos are damaged, first: "
            f"{next(iter(damaged.values()))}; mend or remove them, or set on_damaged to skip"
        )
    names = [str(dataset.ids[row]) for row in damaged]
    dataset = dataclasses.replace(dataset, sizes=sizes)
    if damaged:
        dataset = _drop(dataset, damaged)
        _check_splits(dataset)
    counts = {
        "name": dataset.name,
        "n": len(dataset.ids),
        "queries": len(dataset.query),
        "database": len(dataset.database),
        "train": len(dataset.train),
        "classes": len(dataset.classes),
        "damaged": names,
        "reasons": list(damaged.values()),
        "unlabelled": int((dataset.labels.sum(1) == 0).sum()),
        "labels_per_photo": float(dataset.labels.sum(1).mean()),
        "per_class": dict(
            zip(dataset.classes, dataset.labels.sum(0, dtype=int).tolist(), strict=True)
        ),
    }
    return dataset, counts | _chance(dataset)


# ---- batches -------------------------------------------------------------------------------------


def _example(dataset: Dataset, rows: np.ndarray, size: int, index: int) -> dict[str, np.ndarray]:
    row = rows[index]
    image = _resize(dataset.read(int(row)), size)
    return {"image": image, "row": row, "labels": dataset.labels[row]}


def _iterate(source: grain.MapDataset, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    threads = os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    iterator = iter(source.to_iter_dataset(options))
    try:
        iterator.set_state({"next_index": start_step})
        yield from iterator
    finally:
        iterator.close()


def batches(
    dataset: Dataset,
    rows: Int64[np.ndarray, " k"],
    size: int,
    batch_size: int,
    seed: int = 0,
    start_step: int = 0,
    drop_remainder: bool = True,
    shuffle: bool = True,
    repeat: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over batches, decoded ahead in threads.

    Batch t is a function of the arguments, `seed` and t alone, so a run goes on in mid-epoch with
    `start_step=t`. Each epoch has an order of its own and shows every row at most once. Close the
    iterator (or let it be collected) to end its threads.

    Args:
      dataset: the data set.
      rows: the rows to show.
      size: side to which photos are squashed.
      batch_size: photos a batch.
      seed: of the order, not negative.
      start_step: the first batch to yield.
      drop_remainder: leave out an epoch's last rows where they don't fill a batch; the next
        epoch draws anew. Without it that batch is smaller.
      shuffle: without it, rows come as given.
      repeat: without it, one epoch.

    Returns:
      An iterator over dicts: image uint8 [b size size 3], row int64 [b], labels uint8 [b c].

    Raises:
      ValueError: there are fewer rows than one batch needs. The iterator itself raises it for a
        photo that doesn't decode.
    """
    if len(rows) < (batch_size if drop_remainder else 1):
        raise ValueError(
            f"batch_size is {batch_size}, but {dataset.name} has {len(rows)} rows to draw from; "
            "choose a smaller batch or more photos"
        )
    source = grain.MapDataset.range(len(rows))
    if shuffle:
        # Grain orders epoch e by seed + e, so neighbouring seeds would share their epochs.
        scattered = np.random.SeedSequence(seed).generate_state(1)
        source = source.shuffle(seed=int(scattered[0]))
    source = source.map(functools.partial(_example, dataset, rows, size))
    source = source.batch(batch_size, drop_remainder=drop_remainder)
    if repeat:
        source = source.repeat()
    return _iterate(source, start_step)


def epoch(
    dataset: Dataset, rows: Int64[np.ndarray, " k"], size: int, batch_size: int, start_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates once over `rows` as given; the last batch may be smaller.

    Args:
      dataset: the data set.
      rows: the rows to show.
      size: side to which photos are squashed.
      batch_size: photos a batch.
      start_step: the first batch to yield.

    Returns:
      An iterator as `batches` returns.
    """
    if not len(rows):
        return iter(())
    return batches(
        dataset,
        rows,
        size,
        batch_size,
        start_step=start_step,
        drop_remainder=False,
        shuffle=False,
        repeat=False,
    )
