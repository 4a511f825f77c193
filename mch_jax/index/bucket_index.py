"""Buckets and Algorithm 1: exact search for items that have several binary codes each.

Algorithm 1 of the Multiple Code Hashing paper visits the buckets around a query by growing radius
until k distinct items are found. The number of buckets explodes from radius 2 on, so the index
computes the same answer and the same counts in another way: it looks up radius 0 and 1, and from
there on reads only the codes that the triangle inequality leaves (`kernels.scan`).

Conventions:
  * An item counts once, at its nearest code. Equal distances come in ascending item order.
  * Within a radius, buckets are visited by ascending flip mask, code XOR query as an integer.
    `probed` counts them up to and including the one that holds the k-th distinct item, empty ones
    too; `nonempty` counts those of them that hold an item. The k-th item met in that order decides
    both. The last items of the answer are the smallest of all items at that distance, whichever
    bucket they are in.
  * If fewer than k items exist, all 2^q buckets have been visited.

Codes of more than 64 bits are several words each (`long_codes`); all of this holds for them too.
"""

import math
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8, UInt64

from mch_jax.files import codes_file
from mch_jax.index import filters, long_codes, ranking, segment, storage, streaming
from mch_jax.index.answers import (
    CheapestItems,
    ItemsWithin,
    NearestItems,
    ProbedItems,
    VisitedBuckets,
    concatenated,
    exact_counts,
)
from mch_jax.index.probing import probed_items
from mch_jax.index.ranking import query_threads
from mch_jax.index.words import (
    MAX_BITS,
    allowed_items,
    checked_items,
    checked_margins,
    checked_num_bits,
    query_words,
    words_from_bytes,
)
from mch_jax.kernels import search, visits, within
from mch_jax.kernels.segment import NO_LIMIT, Segments

Allowed = Int[np.ndarray, " a"] | Bool[np.ndarray, " n"]

MERGE_SHARE = 0.25  # `add` merges a delta that is larger than this share of the base's codes
MERGE_FLOOR = 65536
MAX_PROBES = 2**26  # buckets times codes per query: 16 bytes each while a query is answered


class BucketIndex:
    """Exact Hamming search over items with several binary codes each, of 1 to 1,024 bits.

    Several threads may search at once, also during `add`, `remove`, `merge` and `save`, which wait
    for each other. A search sees the index as it was before or after such a call.
    """

    def __init__(self, num_bits: int, segments: Segments):
        self.num_bits = num_bits
        self._segments = segments
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []  # additions not yet in the delta
        self._lock = threading.RLock()
        self._filter = filters.LookupFilter()
        self._largest: tuple[Segments, int] | None = None
        self._by_item: tuple[Segments, ranking.Pairs] | None = None
        self._saved: storage.SavedState | None = None
        self._merge_lock = threading.Lock()
        self._merger: threading.Thread | None = None
        self._changes: list[tuple] | None = None  # changes since the current merge began

    @classmethod
    def build(
        cls, codes: UInt8[np.ndarray, "c bytes"], item: Int[np.ndarray, " c"], num_bits: int
    ) -> "BucketIndex":
        """Returns an index of codes and the items that they belong to.

        Args:
          codes: Codes as in a codes file: bit i of a code is bit i % 8 of byte i // 8.
          item: The item of each code, an integer from 0 to 2^32 - 1.
          num_bits: Code length q.

        Raises:
          ValueError: num_bits is not in 1 to 1,024, or codes or items have the wrong form.
        """
        checked_num_bits(num_bits)
        words, item = words_from_bytes(codes, num_bits), checked_items(item, len(codes))
        base = segment.build_segment(words, item, num_bits)
        return cls(int(num_bits), Segments(base, segment.empty_segment(int(num_bits))))

    @classmethod
    def build_from(
        cls,
        blocks: Iterable[tuple[UInt8[np.ndarray, "c bytes"], Int[np.ndarray, " c"]]],
        num_bits: int,
        directory: str | os.PathLike | None = None,
    ) -> "BucketIndex":
        """Returns an index of a stream of codes, built in little more memory than it takes.

        Args:
          blocks: Codes and their items as for `build`, block by block.
          num_bits: Code length q. Codes of more than 64 bits are collected in memory.
          directory: Where to make a temporary file of 12 bytes per code, if there are more than a
            million. Defaults to the system's directory of temporary files.

        Raises:
          ValueError: As for `build`; the message names the block.
        """
        num_bits = checked_num_bits(num_bits)
        pairs = streaming.pairs_of(blocks, num_bits)
        base = streaming.build_segment(pairs, num_bits, directory)
        return cls(num_bits, Segments(base, segment.empty_segment(num_bits)))

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "BucketIndex":
        """Returns an index of a codes file, such as `codes/database.npz` of a run."""
        file = codes_file.load(path)
        try:
            return cls.build(file.codes, file.item, file.num_bits)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __len__(self) -> int:
        """Returns the number of distinct items."""
        base, delta = self._current()
        items = np.concatenate([segment.live_items(base), delta.items])
        return len(np.unique(items))

    @property
    def num_codes(self) -> int:
        """Number of (code, item) pairs. Removed ones count until the next merge."""
        base, delta = self._current()
        return len(base.items) + len(delta.items)

    @property
    def nbytes(self) -> int:
        """Size in bytes of the arrays, or of the mapped files, and of a filter made for queries."""
        base, delta = self._current()
        return sum(array.nbytes for array in (*base, *delta)) + self._filter.nbytes(base)

    @property
    def version(self) -> str | None:
        """Version of the files that were opened or saved last; None if there are none."""
        return self._saved.version if self._saved else None

    @property
    def pivots(self) -> UInt64[np.ndarray, " p *w"]:
        """The codes around which the others are arranged in rings, as words."""
        return np.asarray(self._current().base.pivots)

    def rings(
        self, codes: UInt8[np.ndarray, "c bytes"]
    ) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " c"]]:
        """Returns the nearest pivot of each code, and the distance to it."""
        words = words_from_bytes(codes, self.num_bits)
        ring = segment.rings_of(words, self.pivots, self.num_bits)
        return ring // (self.num_bits + 1), ring % (self.num_bits + 1)

    @overload
    def search(
        self, query_codes: UInt8[np.ndarray, "m bytes"], k: int, threads: int | None = None,
        *, margins: None = None, allowed: Allowed | None = None, rerank: None = None,
    ) -> NearestItems: ...  # fmt: skip

    @overload
    def search(
        self, query_codes: UInt8[np.ndarray, "m *t bytes"], k: int, threads: int | None = None,
        *, margins: Float32[np.ndarray, "m *t q"], allowed: Allowed | None = None,
        rerank: int | None = None,
    ) -> CheapestItems: ...  # fmt: skip

    def search(
        self, query_codes: UInt8[np.ndarray, "m *t bytes"], k: int, threads: int | None = None,
        *, margins: Float32[np.ndarray, "m *t q"] | None = None, allowed: Allowed | None = None,
        rerank: int | None = None,
    ) -> NearestItems | CheapestItems:  # fmt: skip
        """Returns the k nearest items of each query and the counts of Algorithm 1.

        With margins, items are ranked by asymmetric distance: the sum of the margins over the bits
        in which the codes differ, as exact as in `probe`. There are no counts then. All items are
        ranked, or only the `rerank` nearest by Hamming distance; the answer says which.

        Args:
          query_codes: One code per query; with margins also several, the nearest of which counts.
          k: Number of items, at least 1. It may exceed the number of items that exist.
          threads: Maximum number of threads. Defaults to one per core; few queries take only one.
          margins: Absolute value of the logit of each bit of each query code.
          allowed: The items that may be found, ascending, or whether each item from 0 on may. The
            others are treated as if they were not in the index. Defaults to all.
          rerank: Number of items, nearest by Hamming distance and then by item, that are ranked by
            the margins. Defaults to all.

        Raises:
          ValueError: k is below 1, rerank is below k or given without margins, or one of the arrays
            has the wrong form.
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        if rerank is not None and (margins is None or rerank < k):
            raise ValueError(f"rerank is {rerank}, expected at least k={k}, together with margins")
        if margins is not None:
            return self._cheapest(query_codes, k, threads, margins, allowed, rerank)
        queries, num_bits = words_from_bytes(query_codes, self.num_bits), self.num_bits
        base, delta = self._allowed(allowed)
        lookup_radius = segment.lookup_radius(base, num_bits)
        code_filter = self._filter.of(base, num_bits, len(queries), allowed is None)
        together = segment.read_together(base, len(queries))
        order = segment.reading_order(base, queries, num_bits, threads)
        item = np.empty((len(queries), k), np.int64)
        distance = np.empty((len(queries), k), np.int32)
        probed = np.empty(len(queries), np.uint64)
        nonempty = np.empty(len(queries), np.int64)

        def run(rows: slice) -> None:
            search.nearest_items(
                base, delta, queries, order[rows], num_bits, lookup_radius, code_filter, together,
                item, distance, probed, nonempty,
            )  # fmt: skip

        query_threads(run, len(queries), threads)
        if num_bits > MAX_BITS:
            counts = long_codes.probed_counts(Segments(base, delta), queries, probed, num_bits)
        else:
            counts = exact_counts(probed, num_bits)
        return NearestItems(item, distance, counts, nonempty)

    def _cheapest(self, query_codes, k, threads, margins, allowed, rerank) -> CheapestItems:
        queries = query_words(query_codes, self.num_bits)
        margins = checked_margins(margins, np.shape(query_codes)[:-1], self.num_bits)
        segments = self._allowed(allowed)
        if rerank is None:
            return ranking.cheapest(segments, queries, margins, k, threads)
        if queries.shape[1] == 1:  # the same order without margins is found faster
            flat = np.reshape(query_codes, (len(queries), -1))
            near = self.search(flat, rerank, threads, allowed=allowed).item
        else:
            near = ranking.cheapest(segments, queries, np.ones_like(margins), rerank, threads).item
        return ranking.reranked(self._pairs_by_item(), near, queries, margins, k, threads)

    def _pairs_by_item(self) -> ranking.Pairs:
        """Returns the pairs by item, which are sorted once for the same segments."""
        segments, known = self._current(), self._by_item
        if known is None or known[0] is not segments:
            known = self._by_item = segments, ranking.pairs_by_item(segments)
        return known[1]

    def _allowed(self, allowed) -> Segments:
        """Returns the segments, restricted to the items that are allowed."""
        segments = self._current()
        if allowed is None:
            return segments
        return segment.restricted(segments, allowed_items(allowed), self.num_bits)

    def within(
        self, query_codes: UInt8[np.ndarray, "m bytes"], radius: int, threads: int | None = None
    ) -> ItemsWithin:
        """Returns every item within a radius of each query, nearest first.

        Args:
          query_codes: One code per query.
          radius: Distance in bits, at least 0.
          threads: Maximum number of threads. Defaults to one per core; few queries take only one.

        Raises:
          ValueError: radius is no whole number or negative, or the codes have the wrong form.
        """
        if not isinstance(radius, int | np.integer) or radius < 0:
            raise ValueError(f"radius is {radius}, expected a whole number of at least 0")
        num_bits = self.num_bits
        queries, radius = words_from_bytes(query_codes, num_bits), min(radius, num_bits)
        base, delta = self._current()
        by_lookup = radius <= segment.lookup_radius(base, num_bits)
        unchanged = not len(base.dead) and not len(delta.keys)

        def run(rows: slice) -> tuple:
            if radius == 0 and unchanged:
                return within.items_at_code(base, queries[rows], num_bits)
            return within.items_within(base, delta, queries[rows], num_bits, radius, by_lookup)

        least = segment.QUERIES_PER_TASK if radius else segment.LOOKUPS_PER_TASK
        return concatenated(query_threads(run, len(queries), threads, least), threads)

    def probe(
        self,
        query_codes: UInt8[np.ndarray, "m *t bytes"],
        margins: Float32[np.ndarray, "m *t q"],
        budget: int,
        k: int | None = None,
        threads: int | None = None,
    ) -> ProbedItems:
        """Returns the items of the buckets nearest to each query by quantization distance.

        The quantization distance of a bucket is the sum of the margins of the bits in which it
        differs from the query's code (generate-to-probe, Li et al., SIGMOD 2018). With several
        codes per query it is the smallest over them, and each bucket is looked at once. Buckets at
        equal distances come in ascending order of the flip mask, code XOR query as an integer.

        Distances are compared as exact sums of the margins. Only margins below 2^-32 of a query's
        largest one are rounded, by at most 2^-57 of it; 2^-28 and 2^-53 beyond 64 bits.

        Args:
          query_codes: One code per query, or several.
          margins: Absolute value of the logit of each bit of each code.
          budget: Number of buckets to look at, empty ones included.
          k: Number of distinct items at which to stop earlier. Defaults to no limit.
          threads: Maximum number of threads. Defaults to one per core; few queries take only one.

        Raises:
          ValueError: budget or k is below 1 or budget is above 2^26, or codes or margins have the
            wrong form.
        """
        for name, value in (("budget", budget), ("k", 1 if k is None else k)):
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name} is {value}, expected an integer of at least 1")
        queries, num_bits = query_words(query_codes, self.num_bits), self.num_bits
        margins = checked_margins(margins, np.shape(query_codes)[:-1], num_bits)
        budget = min(int(budget), 1 << num_bits)
        most = MAX_PROBES // math.prod(queries.shape[1:])
        if budget > most:
            raise ValueError(
                f"budget is {budget} for {queries.shape[1]} codes per query, expected at most "
                f"{most}; use search with margins for a whole ranking"
            )
        base, delta = segments = self._current()
        num_codes = len(base.items) + len(delta.items)
        limit = int(k if k is not None and k <= num_codes else NO_LIMIT)
        num_words = self._largest_item(segments) // 64 + 1
        return probed_items(segments, queries, margins, budget, limit, num_words, threads)

    def visits(
        self,
        query_codes: UInt8[np.ndarray, "m bytes"],
        k: int | None = None,
        radius: Int[np.ndarray, " m"] | None = None,
    ) -> VisitedBuckets:
        """Returns the non-empty buckets that Algorithm 1 visits up to the k-th item, one by one.

        Args:
          query_codes: One code per query.
          k: Number of items. Defaults to all.
          radius: Distance of each query's k-th item, if it is known; this saves time.
        """
        queries, num_bits = words_from_bytes(query_codes, self.num_bits), self.num_bits
        base, delta = self._current()
        if radius is None:
            radius = np.full(len(queries), num_bits)
        k = len(base.items) + len(delta.items) + 1 if k is None else k
        radii = np.asarray(radius, np.int64)
        order = segment.reading_order(base, queries, num_bits)
        lookup_radius = segment.lookup_radius(base, num_bits)
        offsets, mask, new = visits.visited_buckets(
            base, delta, queries, order, num_bits, radii, k, lookup_radius
        )
        return VisitedBuckets(offsets, mask.reshape(-1, *queries.shape[1:]), new)

    def add(self, codes: UInt8[np.ndarray, "c bytes"], item: Int[np.ndarray, " c"]) -> None:
        """Adds codes. An item that exists already keeps its other codes.

        If much was added since the last merge, a thread starts another merge.

        Args:
          codes: Codes as for `build`.
          item: The item of each code.
        """
        words, item = words_from_bytes(codes, self.num_bits).copy(), checked_items(item, len(codes))
        with self._lock:
            self._pending.append((words, item))
            if self._changes is not None:
                self._changes.append((words, item))
            num_pending = sum(len(items) for _, items in self._pending)
            base, delta = self._segments
            limit = max(MERGE_FLOOR, MERGE_SHARE * len(base.items))
            is_large = len(delta.items) + num_pending > limit
            if is_large and not (self._merger and self._merger.is_alive()):
                self._merger = threading.Thread(target=self.merge, daemon=True)
                self._merger.start()

    def remove(self, item: int | Int[np.ndarray, " n"]) -> None:
        """Removes items with all their codes. Items that do not exist are ignored."""
        item = checked_items(np.atleast_1d(item))
        with self._lock:
            base, delta = self._current()
            if self._changes is not None:
                self._changes.append((None, item))
            base = segment.without_items(base, item, self.num_bits)
            words, items = segment.all_pairs(delta)
            keep = ~np.isin(items, item)
            if not keep.all():
                delta = segment.build_segment(words[keep], items[keep], self.num_bits)
            self._segments = Segments(base, delta)

    def merge(self) -> None:
        """Rewrites base, additions and removals as one base, which makes searches fastest.

        Searches, additions and removals in other threads continue meanwhile.
        """
        with self._merge_lock:
            with self._lock:
                base, delta = self._current()
                self._changes = []
            try:
                base = streaming.merged(Segments(base, delta), self.num_bits)
                with self._lock:
                    changes, self._pending = self._changes, []
                    self._segments = Segments(base, segment.empty_segment(self.num_bits))
                    self._changes = None
                    for words, item in changes:
                        if words is None:
                            self.remove(item)
                        else:
                            self._pending.append((words, item))
            finally:
                self._changes = None

    def save(self, directory: str | os.PathLike) -> None:
        """Saves the index, replacing the one in `directory` in one step.

        Only arrays that changed since the directory was opened or saved are written. A crash leaves
        the index that was saved last.

        Args:
          directory: Where to save it; created if it does not exist.

        Raises:
          ValueError: The directory holds something that is not an index, or this index was opened
            from it or saved to it, and another process has saved it since then.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with self._lock, storage.lock(directory):
            self._saved = storage.save(directory, self.num_bits, self._current(), self._saved)

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike,
        verify: bool = True,
        like: "BucketIndex | None" = None,
    ) -> "BucketIndex":
        """Opens a saved index with its arrays mapped into memory.

        Args:
          directory: Where `save` put it.
          verify: Whether to compare every file with its checksum, which reads all of it once.
            Otherwise only names, sizes and shapes are checked.
          like: An index opened from the same directory before. Arrays that have not changed are
            taken from it.

        Raises:
          ValueError: A file is missing, damaged or not part of an index; the message names it.
        """
        earlier = like._saved if like else None
        num_bits, segments, saved = storage.load(Path(directory), verify, earlier)
        index = cls(num_bits, segments)
        index._saved = saved
        return index

    @staticmethod
    def version_of(directory: str | os.PathLike) -> str:
        """Returns the version of the state that is saved in a directory."""
        return storage.version_of(Path(directory))

    def _current(self) -> Segments:
        """Returns the segments, with pending additions in the delta.

        Raises:
          ValueError: A file that is mapped into memory was cut or changed.
        """
        if self._saved:
            self._saved.check(self._segments)
        if self._pending:
            with self._lock:
                base, delta = self._segments
                pairs = [segment.all_pairs(delta), *self._pending]
                words, item = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
                delta = segment.build_segment(words, item, self.num_bits)
                self._segments = Segments(base, delta)
                self._pending = []
        return self._segments

    def _largest_item(self, segments: Segments) -> int:
        """Returns the largest item, which is computed once for the same segments."""
        known = self._largest
        if known is None or known[0] is not segments:
            sizes = (int(part.items.max(initial=0)) for part in segments)
            known = self._largest = segments, max(sizes)
        return known[1]
