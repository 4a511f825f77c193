"""A server of one shard, and the form of its answers."""

import os
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt8, UInt64

from mch_jax.index import BucketIndex


class Answer(NamedTuple):
    """What a replica answers.

    Attributes:
      version: The version of the shard's files that the answer holds for.
      value: The result of the call.
    """

    version: str
    value: Any


class NearestInShard(NamedTuple):
    """The nearest items of one shard, and the buckets that Algorithm 1 visits to find them.

    Attributes:
      item: The k nearest items of each query, as in the answer of `BucketIndex.search`.
      distance: Their distances in bits.
      bucket_offsets: The visited non-empty buckets of query i are those from bucket_offsets[i] to
        bucket_offsets[i + 1].
      mask: The bucket's code XOR the query's.
      new_items: The number of items that the bucket is the first to hold.
    """

    item: Int64[np.ndarray, "m k"]
    distance: Int32[np.ndarray, "m k"]
    bucket_offsets: Int64[np.ndarray, " m+1"]
    mask: UInt64[np.ndarray, " b *w"]
    new_items: Int64[np.ndarray, " b"]


class WithinShard(NamedTuple):
    """The items of one shard within a radius of each query, and the non-empty buckets there.

    Attributes:
      offsets: The items of query i are item[offsets[i]:offsets[i + 1]].
      item: The items, as in the answer of `BucketIndex.within`.
      distance: Their distances in bits.
      bucket_offsets: The non-empty buckets of query i are those from bucket_offsets[i] to
        bucket_offsets[i + 1].
      mask: The bucket's code XOR the query's.
    """

    offsets: Int64[np.ndarray, " m+1"]
    item: Int64[np.ndarray, " n"]
    distance: Int32[np.ndarray, " n"]
    bucket_offsets: Int64[np.ndarray, " m+1"]
    mask: UInt64[np.ndarray, " b *w"]


class Sizes(NamedTuple):
    """The numbers of items, of (code, item) pairs and of bytes in a shard."""

    items: int
    codes: int
    nbytes: int


class Replica:
    """Serves one shard from its files; may be called by several threads.

    Every method takes the version of the shard that the caller expects, or None for any version.
    """

    def __init__(self, directory: str | os.PathLike):
        """Opens the shard in a directory and compiles the search."""
        self._directory = Path(directory)
        self._lock = threading.Lock()
        self._index = BucketIndex.open(directory)
        query = np.zeros((1, -(-self._index.num_bits // 8)), np.uint8)
        self.search(None, query, 1)

    def _opened(self, version: str | None) -> BucketIndex:
        """Returns the index in the expected version or, if it is in another one, in the newest."""
        with self._lock:
            if version not in (None, self._index.version):
                newest = BucketIndex.version_of(self._directory)
                if newest != self._index.version:
                    self._index = BucketIndex.open(self._directory, like=self._index)
            return self._index

    def search(self, version: str | None, queries: UInt8[np.ndarray, "m bytes"], k: int) -> Answer:
        """Returns `NearestInShard` for the k nearest items of each query."""
        index = self._opened(version)
        hits = index.search(queries, k)
        has_fewer = hits.item[:, -1] < 0
        radius = np.where(has_fewer, index.num_bits, hits.distance[:, -1])
        visits = index.visits(queries, k, radius)
        return Answer(index.version or "", NearestInShard(hits.item, hits.distance, *visits))

    def within(
        self, version: str | None, queries: UInt8[np.ndarray, "m bytes"], radius: int
    ) -> Answer:
        """Returns `WithinShard` for the items within a radius of each query."""
        index = self._opened(version)
        found = index.within(queries, radius)
        radii = np.full(len(queries), min(radius, index.num_bits))
        bucket_offsets, mask, _ = index.visits(queries, None, radii)
        return Answer(
            index.version or "",
            WithinShard(found.offsets, found.item, found.distance, bucket_offsets, mask),
        )

    def sizes(self, version: str | None) -> Answer:
        """Returns the `Sizes` of the shard."""
        index = self._opened(version)
        return Answer(index.version or "", Sizes(len(index), index.num_codes, index.nbytes))
