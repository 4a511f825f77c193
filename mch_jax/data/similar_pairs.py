"""Readers of the similarity of photos as pairs or triplets, in place of labels.

pairs.csv has the columns file and other, and may have a column similarity with a score. Triplets
are in triplets.csv with the columns anchor, positive and negative: the anchor is more similar to
the positive photo than to the negative one. Other pairs count as dissimilar.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Int64

from mch_jax.data import label_files

PAIRS, TRIPLETS = "pairs.csv", "triplets.csv"
_MAX_PHOTOS = 20_000  # photos with a pair; their similarity is held as a matrix of bytes


def read(path: pathlib.Path, ids: Sequence[str], threshold: float) -> Int64[np.ndarray, "k 2"]:
    """Returns the similar pairs of a file, as positions of their photos in `ids`.

    A pair of pairs.csv is similar if its score is at least `threshold`, or if there is no column of
    scores. A pair of triplets.csv is similar if it is positive in more triplets than it is negative
    in. Lines with a photo that is not in `ids` are left out and counted in the log.

    Args:
      path: Path of pairs.csv or triplets.csv.
      ids: Names of the photos.
      threshold: Score from which a pair is similar.

    Returns:
      Pairs (i, j) with i < j, without repetition, in ascending order.

    Raises:
      ValueError: The file is not such a table, no photo of it is in `ids`, a photo is paired with
        itself, a pair has two scores, or too many photos have a pair.
    """
    is_triplets = path.name == TRIPLETS
    names = ("anchor", "positive", "negative") if is_triplets else ("file", "other")
    header, rows = _rows(path, names)
    number = {name: i for i, name in enumerate(ids)}
    votes: dict[tuple[int, int], float] = {}
    missing = 0
    for line, row in enumerate(rows, 2):
        photos = [
            number.get(label_files.relative_name(x, f"'{path}'"), -1) for x in row[: len(names)]
        ]
        if -1 in photos:
            missing += 1
            continue
        if len(set(photos)) < len(names):
            raise ValueError(f"'{path}' line {line} names a photo twice; expected different photos")
        pair = _ordered(photos[0], photos[1])
        if is_triplets:
            votes[pair] = votes.get(pair, 0) + 1
            against = _ordered(photos[0], photos[2])
            votes[against] = votes.get(against, 0) - 1
            continue
        score = _score(row[2], f"'{path}' line {line}") if len(header) > 2 else threshold
        if votes.setdefault(pair, score) != score:
            raise ValueError(
                f"'{path}' line {line}: {row[0]} and {row[1]} have the scores {votes[pair]:g} and "
                f"{score:g}; expected one score for each pair"
            )
    if missing == len(rows):
        raise ValueError(
            f"'{path}': no line has only photos of the data set, such as {ids[0]!r}; expected "
            "paths relative to the folder of the photos"
        )
    if missing:
        logging.warning("'%s': %d of %d lines name other photos", path, missing, len(rows))
    least = 1 if is_triplets else threshold
    found = sorted(pair for pair, value in votes.items() if value >= least)
    pairs = np.array(found, np.int64).reshape(-1, 2)
    count = len(np.unique(pairs))
    if count > _MAX_PHOTOS:
        raise ValueError(
            f"'{path}' has pairs of {count:,} photos, expected at most {_MAX_PHOTOS:,}; use labels"
        )
    return pairs


def _ordered(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)


def _score(text: str, source: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not np.isfinite(score):
        raise ValueError(f"{source}: similarity {text!r}, expected a number")
    return score


def _rows(path: pathlib.Path, names: tuple[str, ...]) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of a table with given first columns."""
    rows = label_files.read_rows(path)
    header, *lines = rows or [[]]
    allowed = [list(names)] + ([[*names, "similarity"]] if len(names) == 2 else [])
    if header not in allowed:
        raise ValueError(
            f"'{path}' starts with {','.join(header)[:80]!r}; expected the header "
            + " or ".join(",".join(x) for x in allowed)
        )
    if not lines:
        raise ValueError(f"'{path}' has no line below the header; expected similar photos")
    label_files.check_widths(path, header, lines)
    return header, lines
