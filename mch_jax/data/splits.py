"""Splits: which photos are queries, database and training set."""

import numpy as np


def split_rows(splits: list[str]) -> dict[str, np.ndarray]:
    """Returns the rows of each split; a table's `train` rows belong to the database too."""
    names = np.array(splits)
    return {
        "query": np.flatnonzero(names == "query"),
        "database": np.flatnonzero(names != "query"),
        "train": np.flatnonzero(names == "train"),
    }


def random_split(
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
