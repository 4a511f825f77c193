"""The answers of an index."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, Shaped, UInt64

from mch_jax.kernels.threads import in_threads


class NearestItems(NamedTuple):
    """The k nearest items of each query, and the number of buckets that Algorithm 1 visits.

    Attributes:
      item: Items in ascending order of distance, then of item, each once; -1 where fewer than k
        exist.
      distance: Bits between the query and the item's nearest code; -1 likewise.
      probed: Number of buckets that Algorithm 1 visits up to the one with the k-th item, empty ones
        included. int64, or Python integers if one exceeds 2^63.
      nonempty: Number of these buckets that hold an item.
    """

    item: Int64[np.ndarray, "m k"]
    distance: Int32[np.ndarray, "m k"]
    probed: Shaped[np.ndarray, " m"]
    nonempty: Int64[np.ndarray, " m"]


class CheapestItems(NamedTuple):
    """The k items of least asymmetric distance to each query.

    Attributes:
      item: Items in ascending order of distance, then of item, each once; -1 where fewer than k
        exist.
      distance: Sum of the query's margins over the bits in which the item's code differs, the least
        over its codes; -1 likewise.
      rerank: The number of items nearest by Hamming distance that were ranked; None if all were, so
        that the answer is exact.
    """

    item: Int64[np.ndarray, "m k"]
    distance: Float32[np.ndarray, "m k"]
    rerank: int | None = None


class ItemsWithin(NamedTuple):
    """Every item within a radius of each query.

    Attributes:
      offsets: The items of query i are item[offsets[i]:offsets[i + 1]].
      item: Items in ascending order of distance, then of item, each once.
      distance: Bits between the query and the item's nearest code.
      nonempty: Number of non-empty buckets within the radius, of `ball_size(q, radius)` in all.
    """

    offsets: Int64[np.ndarray, " m+1"]
    item: Int64[np.ndarray, " n"]
    distance: Int32[np.ndarray, " n"]
    nonempty: Int64[np.ndarray, " m"]


class ProbedItems(NamedTuple):
    """The items found by looking at buckets in ascending order of quantization distance.

    Attributes:
      offsets: The items of query i are item[offsets[i]:offsets[i + 1]].
      item: Items in the order found, ascending within a bucket, each once.
      cost: Quantization distance of the bucket in which the item was found.
      probed: Number of buckets looked at, empty ones included.
      nonempty: Number of these that hold an item.
      candidates: Number of codes read, those of items that were found before included.
    """

    offsets: Int64[np.ndarray, " m+1"]
    item: Int64[np.ndarray, " n"]
    cost: Float32[np.ndarray, " n"]
    probed: Int64[np.ndarray, " m"]
    nonempty: Int64[np.ndarray, " m"]
    candidates: Int64[np.ndarray, " m"]


class VisitedBuckets(NamedTuple):
    """The non-empty buckets that Algorithm 1 visits for each query, in its order.

    Attributes:
      offsets: The buckets of query i are those from offsets[i] to offsets[i + 1].
      mask: Flip mask of the bucket: its code XOR the query's. One word, or several for codes of
        more than 64 bits, least significant first.
      new_items: Number of items, among the first k, that the bucket is the first to hold.
    """

    offsets: Int64[np.ndarray, " m+1"]
    mask: UInt64[np.ndarray, " n *w"]
    new_items: Int64[np.ndarray, " n"]


def joined(batches: Sequence[tuple], threads: int | None = 1) -> list[np.ndarray]:
    """Returns the fields of an answer from those of consecutive batches of queries, offsets first.

    Args:
      batches: The fields for each batch; at least one.
      threads: Maximum number of threads that copy. Defaults to one per core.
    """
    if len(batches) == 1:
        return list(batches[0])
    offsets, *arrays = zip(*batches, strict=True)
    sizes = np.concatenate([[0], *map(np.diff, offsets)])
    starts = [np.cumsum([0, *map(len, parts)]) for parts in arrays]
    fields = [
        np.empty(start[-1], parts[0].dtype) for start, parts in zip(starts, arrays, strict=True)
    ]

    def copy(rows: slice) -> None:
        for field, start, parts in zip(fields, starts, arrays, strict=True):
            np.concatenate(parts[rows], out=field[start[rows.start] : start[rows.stop]])

    in_threads(copy, len(batches), threads)
    return [np.cumsum(sizes), *fields]


def concatenated(batches: Sequence[tuple], threads: int | None = 1) -> ItemsWithin:
    """Returns the items within a radius for consecutive batches of queries as one answer.

    Args:
      batches: The fields of `ItemsWithin` for each batch; at least one.
      threads: Maximum number of threads that copy. Defaults to one per core.
    """
    return ItemsWithin(*joined(batches, threads))


def exact_counts(probed: UInt64[np.ndarray, " m"], num_bits: int) -> Shaped[np.ndarray, " m"]:
    """Returns a kernel's numbers of buckets, in which 0 stands for 2^q, as int64 where they fit.

    Args:
      probed: Numbers of buckets; may be changed.
      num_bits: Code length q, up to 64.
    """
    if num_bits < 63:
        probed[probed == 0] = 1 << num_bits
        return probed.view(np.int64)
    if ((probed > 0) & (probed < 1 << 63)).all():
        return probed.view(np.int64)
    return np.array([int(count) or 1 << num_bits for count in probed], object)
