"""The number of buckets that Algorithm 1 visits, without visiting them.

Algorithm 1 of the Multiple Code Hashing paper visits the buckets around a query by ascending
radius, and within a radius by ascending flip mask (code XOR query, as an integer), until k distinct
items are found. The number of masks that precede a given one is known in closed form, so that the
mask of the last bucket gives the count.
"""

from collections.abc import Sequence
from math import comb

import numpy as np
from jaxtyping import Float, Int, Int64, UInt8, UInt64

from mch_jax.index import long_codes
from mch_jax.index.words import MAX_BITS, checked_items, words_from_bytes
from mch_jax.kernels import build
from mch_jax.kernels import visit_counts as kernels
from mch_jax.kernels.threads import in_threads


def ball_size(num_bits: int, radius: int) -> int:
    """Returns the number of buckets within a radius: the sum of C(q, i) for i up to the radius."""
    return sum(comb(num_bits, i) for i in range(min(radius, num_bits) + 1))


def count_visits(
    masks: UInt64[np.ndarray, " n *w"], new_items: Int64[np.ndarray, " n"], k: int, num_bits: int
) -> tuple[int, int]:
    """Returns how many buckets Algorithm 1 visits for one query, in all and non-empty ones.

    Args:
      masks: Flip masks of the non-empty buckets, in any order. A bucket may occur several times, as
        when shards of an index are merged. Codes of more than 64 bits have rows of words.
      new_items: Number of items that each bucket is the first to hold; no item counts twice.
      k: Number of items to find.
      num_bits: Code length q.
    """
    words = masks if masks.ndim == 2 else masks[:, None]
    distance = np.bitwise_count(words).sum(1, dtype=np.int64)
    order = np.lexsort((*words.T, distance))
    words, num_met = words[order], np.cumsum(new_items[order])
    is_new = np.append(True, (words[1:] != words[:-1]).any(1)) if len(words) else np.empty(0, bool)
    last = int(np.searchsorted(num_met, k))
    if last == len(words):
        return 1 << num_bits, int(is_new.sum())
    mask = int.from_bytes(words[last].astype("<u8").tobytes(), "little")
    return long_codes.num_visited(mask, num_bits), int(is_new[: last + 1].sum())


def visit_counts(
    query_codes: UInt8[np.ndarray, "m bytes"],
    codes: UInt8[np.ndarray, "c bytes"],
    item: Int[np.ndarray, " c"],
    num_bits: int,
    items_per_distance: Int[np.ndarray, "m q+1"],
    ks: Sequence[int],
    threads: int | None = None,
) -> tuple[Float[np.ndarray, "m k"], Int64[np.ndarray, "m k"]]:
    """Returns how many buckets Algorithm 1 visits up to the k-th item, in all and non-empty ones.

    This needs no index, and takes less time than one search per k, where the number of items at
    each distance is already known.

    Args:
      query_codes: One code per query.
      codes: Codes of the items.
      item: The item of each code.
      num_bits: Code length q, up to 64.
      items_per_distance: Number of items at each distance from each query.
      ks: Numbers of items to find, none larger than the number of items.
      threads: Maximum number of threads. Defaults to one per core.

    Raises:
      ValueError: num_bits is above 64, or codes or items have the wrong form.
    """
    if num_bits > MAX_BITS:
        raise ValueError(
            f"num_bits is {num_bits}, expected at most {MAX_BITS}; search an index of longer codes"
        )
    ordered, column = np.unique(np.asarray(ks, np.int64), return_inverse=True)
    probed = np.zeros((len(query_codes), len(ordered)), np.float64)
    nonempty = np.zeros((len(query_codes), len(ordered)), np.int64)
    if len(ordered):
        words = words_from_bytes(codes, num_bits)
        order = np.argsort(words)
        buckets = build.group_by_code(words[order], checked_items(item, len(codes))[order])
        queries, num_within = words_from_bytes(query_codes, num_bits), items_per_distance.cumsum(1)

        def run(rows: slice) -> None:
            kernels.visit_counts(
                *buckets, queries[rows], num_within[rows], ordered, probed[rows],
                nonempty[rows],
            )  # fmt: skip

        in_threads(run, len(queries), threads)
    return probed[:, column], nonempty[:, column]
