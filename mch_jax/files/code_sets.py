"""Conversions between code sets, as devices use them, and codes files."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt32

from mch_jax import codes
from mch_jax.codes import CodeSet
from mch_jax.files.codes_file import CodeFile


def flatten(code_set: CodeSet, ids: np.ndarray, labels: np.ndarray, num_bits: int) -> CodeFile:
    """Returns the kept codes of a code set as a flat list, equal codes of an image once.

    Args:
      code_set: The codes of n images.
      ids: The names of the n images.
      labels: Multi-hot labels [n, classes].
      num_bits: Length of a code in bits.
    """
    kept = codes.first_of_equals(jnp.asarray(code_set.packed), jnp.asarray(code_set.kept))
    item, slot = np.nonzero(np.asarray(kept))
    return CodeFile(
        codes=codes.to_bytes(np.asarray(code_set.packed)[item, slot], num_bits),
        item=item.astype(np.int64),
        ids=np.asarray(ids).astype(np.str_),
        keep_prob=np.asarray(code_set.keep_prob)[item, slot].astype(np.float32),
        box=code_set.box[item, slot].astype(np.int32),
        labels=np.asarray(labels, np.uint8),
        num_bits=num_bits,
    )


def by_num_codes(
    file: CodeFile,
) -> Iterator[tuple[Int[np.ndarray, " k"], UInt32[np.ndarray, "t w k"]]]:
    """Yields the items with one code, then those with two codes, and so on.

    Padding every item to the largest number of codes would take up to t times the memory and the
    time of a search.

    Args:
      file: The codes of a set of images.

    Yields:
      The rows of the items with t codes, and their packed codes with the items on the last axis.
    """
    counts = np.bincount(file.item, minlength=len(file.ids))
    starts = np.cumsum(counts) - counts
    words = codes.from_bytes(file.codes, file.num_bits).T
    for number in np.unique(counts[counts > 0]):
        items = np.flatnonzero(counts == number)
        rows = starts[items][None] + np.arange(number)[:, None]
        yield items, np.ascontiguousarray(words[:, rows].swapaxes(0, 1))
