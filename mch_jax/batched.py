"""Calls of a function on many rows, in batches of one fixed size.

A compiled function is compiled once per shape. A smaller batch, such as the last one, is therefore
padded to the size of the others, and the results of the padding are cut off.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

Rows = TypeVar("Rows", bound=Any)  # anything with a length and slices


def split(rows: Rows, size: int) -> Iterator[Rows]:
    """Yields consecutive slices of `size` rows; the last one may be smaller."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def apply(function: Callable[[Any], Any], batch: Any, size: int) -> Any:
    """Returns a function's results for one batch, computed at a fixed batch size.

    The batch is padded with copies of its own rows, which are valid inputs wherever the rows are
    (an empty box, for one, would be divided by zero).

    Args:
      function: Maps a tree of arrays [size ...] to a tree of arrays [size ...], row by row.
      batch: A tree of arrays [b ...] with 1 <= b <= size.
      size: Number of rows that the function is called with.

    Returns:
      The function's results for the b rows, as NumPy arrays.

    Raises:
      ValueError: The batch is empty, or larger than `size`.
    """
    count = len(jax.tree.leaves(batch)[0])
    if not 0 < count <= size:
        raise ValueError(f"batch has {count} rows, expected between 1 and {size}")

    def pad(x):
        return x if len(x) == size else np.resize(x, (size, *x.shape[1:]))

    results = function(jax.tree.map(pad, batch))
    return jax.tree.map(lambda x: np.asarray(x)[:count], results)


def apply_all(function: Callable[[Any], Any], batches: Iterable[Any], size: int) -> Any:
    """Returns a function's results for all batches, concatenated.

    Args:
      function: Maps a tree of arrays [size ...] to a tree of arrays [size ...], row by row.
      batches: Trees of arrays [b ...] with 1 <= b <= size; at least one.
      size: Number of rows that the function is called with.
    """
    results = [apply(function, batch, size) for batch in batches]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)
