"""Random splits of a data set into queries, database and training set."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8


def split_rows(splits: list[str]) -> dict[str, np.ndarray]:
    """Returns the rows of each split, given the split of each row.

    Rows of `train` are also in the database.
    """
    names = np.array(splits)
    return {
        "query": np.flatnonzero(names == "query"),
        "database": np.flatnonzero(names != "query"),
        "train": np.flatnonzero(names == "train"),
    }


def limited(rows: Int64[np.ndarray, " n"], count: int) -> Int64[np.ndarray, " m"]:
    """Returns some of the rows, drawn the same way each time; fewer rows are part of more.

    Args:
      rows: Rows to draw from, ascending.
      count: Number of rows to return.

    Raises:
      ValueError: The number is below 1 or above that of the rows.
    """
    if not 1 <= count <= len(rows):
        raise ValueError(
            f"num_train is {count}, expected from 1 to {len(rows)}, the number of training photos"
        )
    return np.sort(np.random.default_rng(0).permutation(rows)[:count])


def random_split(
    n: int, seed: int, query_fraction: float, train_fraction: float
) -> dict[str, np.ndarray]:
    """Draws the splits by fractions.

    Args:
      n: Number of photos.
      seed: Seed of the draw.
      query_fraction: Fraction of the photos that become queries. The others are the database.
      train_fraction: Fraction of the database that is the training set.

    Raises:
      ValueError: A fraction is not above 0 and at most 1.
    """
    for name, value in (("query_fraction", query_fraction), ("train_fraction", train_fraction)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} is {value}, expected a fraction above 0 and at most 1")
    order = np.random.default_rng(seed).permutation(n)
    num_query = max(1, round(n * query_fraction))
    num_train = max(1, round((n - num_query) * train_fraction))
    return {
        "query": np.sort(order[:num_query]),
        "database": np.sort(order[num_query:]),
        "train": np.sort(order[num_query : num_query + num_train]),
    }


def counted_split(n: int, seed: int, num_query: int, num_train: int) -> dict[str, np.ndarray]:
    """Draws the splits by numbers of photos.

    Args:
      n: Number of photos.
      seed: Seed of the draw.
      num_query: Number of queries. The other photos are the database.
      num_train: Number of training photos, drawn from the database.

    Raises:
      ValueError: A number is below 1, or there are too few photos.
    """
    if num_query < 1 or num_train < 1 or num_query + num_train > n:
        raise ValueError(
            f"num_query is {num_query} and num_train {num_train}, expected at least 1 each and "
            f"together at most {n}, the number of photos"
        )
    order = np.random.default_rng(seed).permutation(n)
    return {
        "query": np.sort(order[:num_query]),
        "database": np.sort(order[num_query:]),
        "train": np.sort(order[num_query : num_query + num_train]),
    }


def per_class_split(
    labels: UInt8[np.ndarray, "n c"], seed: int, query_per_class: int, train_per_class: int
) -> dict[str, np.ndarray]:
    """Draws the splits by numbers of photos per class, as the literature does.

    Photos are visited in random order. Each is taken for the first of its classes that still needs
    a photo. Since a photo counts for one class only but may have several, frequent classes end up
    with more photos.

    Args:
      labels: Multi-hot labels.
      seed: Seed of the draw.
      query_per_class: Number of queries per class. The other photos are the database.
      train_per_class: Number of training photos per class, drawn from the database.

    Raises:
      ValueError: A number is below 1, or a class has too few photos.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    query = _for_each_class(labels, order, query_per_class, "query_per_class")
    rest = order[~np.isin(order, query)]
    train = _for_each_class(labels, rest, train_per_class, "train_per_class")
    return {"query": np.sort(query), "database": np.sort(rest), "train": np.sort(train)}


def _for_each_class(
    labels: np.ndarray, order: np.ndarray, per_class: int, setting: str
) -> np.ndarray:
    """Returns the rows that are taken from `order`; `setting` names `per_class` in errors."""
    if per_class < 1:
        raise ValueError(f"{setting} is {per_class}, expected at least 1")
    needed = np.full(labels.shape[1], per_class)
    taken = []
    for row in order:
        classes = np.flatnonzero((labels[row] > 0) & (needed > 0))
        if len(classes):
            needed[classes[0]] -= 1
            taken.append(row)
            if not needed.any():
                return np.array(taken)
    raise ValueError(
        f"{setting} is {per_class}, but {np.count_nonzero(needed)} classes have fewer photos; "
        "lower it, or use fewer classes"
    )


def without_classes(
    rows: Int64[np.ndarray, " t"],
    labels: UInt8[np.ndarray, "n c"],
    classes: Sequence[str],
    hidden: Sequence[str],
) -> Int64[np.ndarray, " _"]:
    """Returns the rows of photos that have none of the hidden classes.

    Args:
      rows: Rows of photos.
      labels: Multi-hot labels of all photos.
      classes: Names of the classes.
      hidden: Names of the hidden classes.

    Raises:
      ValueError: A hidden class is not a class.
    """
    for name in hidden:
        if name not in classes:
            raise ValueError(
                f"hidden_classes has '{name}', expected names among {', '.join(classes)}"
            )
    columns = [list(classes).index(name) for name in hidden]
    return rows[~labels[rows][:, columns].any(1)]
