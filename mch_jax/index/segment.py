"""Builds segments and decides what depends on their size.

`kernels.segment` describes the arrays.
"""

import functools
from collections.abc import Iterable
from math import comb

import numpy as np
from jaxtyping import Bool, Int, Int64, UInt32, UInt64

from mch_jax.index import long_codes
from mch_jax.index.words import MAX_BITS
from mch_jax.kernels import build
from mch_jax.kernels.scan import LOOKUP_COST
from mch_jax.kernels.segment import DIRECT_BITS, Segment, Segments, set_bits
from mch_jax.kernels.threads import in_threads

NUM_PIVOTS = 256
CANDIDATE_FLOOR = 1024  # pivots are chosen among at least this many of the fullest buckets
CODES_PER_PIVOT = 64  # with fewer codes per pivot, comparing pivots would cost more than reading
QUERIES_PER_TASK = 64
LOOKUPS_PER_TASK = 2**15  # queries that only read their own bucket
MIN_BYTES_TOGETHER = 2**22  # of keys; fewer stay in the cache from one query to the next
REBUILD_SHARE = 8  # fewer allowed items than one in this many are searched on their own
MAX_DEAD_BYTES, DEAD_BYTES_PER_PAIR = 2**20, 16  # larger arrays of removed items are not made

# Measured (docs/search.md): one lookup costs as much as reading LOOKUP_COST codes, and the rings
# around a query hold about RING_SHARE of all codes. The C(q, 2) lookups of radius 2 never paid.
RING_SHARE, MAX_LOOKUP_RADIUS = 1 / 64, 1


def build_segment(
    words: UInt64[np.ndarray, " c *w"], item: UInt32[np.ndarray, " c"], num_bits: int
) -> Segment:
    """Returns the segment of codes and their items in any order. Repeated pairs count once.

    Raises:
      ValueError: There are 2^32 codes or more.
    """
    if len(words) >= 2**32:
        raise ValueError(f"{len(words)} codes, expected fewer than 2^32; use several indexes")
    if words.ndim == 2:
        return long_codes.build_segment(
            words, item, num_bits, _pivot_candidates, lambda size: num_slots(size, num_bits)
        )
    order = np.argsort(words)
    keys, offsets, items = build.group_by_code(words[order], item[order])
    del order
    pivots = pivots_of(keys, offsets, num_bits)
    ring = build.assign_rings(keys, pivots, num_bits)
    num_rings = len(pivots) * (num_bits + 1)
    sorted_keys = cache_aligned(len(keys))
    offsets, items, rings = build.sort_by_ring(keys, offsets, items, ring, num_rings, sorted_keys)
    table = np.zeros(num_slots(len(keys), num_bits), np.uint32)
    build.fill_table(sorted_keys, len(sorted_keys), table, num_bits)
    return Segment(sorted_keys, offsets, items, pivots, rings, table, np.empty(0, np.uint64))


def pivots_of(
    keys: UInt64[np.ndarray, " d"], offsets: UInt32[np.ndarray, " d+1"], num_bits: int
) -> UInt64[np.ndarray, " p"]:
    """Returns the pivots of buckets: codes of the fullest ones that are far enough apart."""
    candidates, limit = _pivot_candidates(offsets)
    if not limit:
        return np.empty(0, np.uint64)
    return build.choose_pivots(keys[candidates], num_bits // 6, limit)


def _pivot_candidates(offsets: UInt32[np.ndarray, " d+1"]) -> tuple[np.ndarray, int]:
    """Returns the buckets among which pivots are chosen, and how many may be."""
    fullest = np.argsort(-np.diff(offsets.astype(np.int64)), kind="stable")
    num_keys = len(fullest)
    fullest = fullest[: max(CANDIDATE_FLOOR, num_keys // 16)]  # where codes are dense
    return fullest, min(NUM_PIVOTS, -(-num_keys // CODES_PER_PIVOT))


@functools.cache
def empty_segment(num_bits: int) -> Segment:
    """Returns the segment without codes."""
    shape = (0, long_codes.num_words(num_bits)) if num_bits > MAX_BITS else 0
    return build_segment(np.empty(shape, np.uint64), np.empty(0, np.uint32), num_bits)


def cache_aligned(size: int) -> UInt64[np.ndarray, " n"]:
    """Returns an uninitialised array that begins at a cache line, as arrays of mapped files do."""
    larger = np.empty(size + 8, np.uint64)
    start = -larger.ctypes.data % 64 // 8
    return larger[start : start + size]


def num_slots(num_keys: int, num_bits: int) -> int:
    """Returns the size of the table of a segment."""
    if num_bits <= DIRECT_BITS:
        return 1 << num_bits
    return 1 << max(1, (3 * num_keys // 2).bit_length())


def all_pairs(segment: Segment) -> tuple[UInt64[np.ndarray, " c *w"], UInt32[np.ndarray, " c"]]:
    """Returns the code and the item of every pair, removed ones included."""
    keys = long_codes.words_of(segment) if segment.keys.ndim > 1 else segment.keys
    return np.repeat(keys, np.diff(segment.offsets), axis=0), np.asarray(segment.items)


def live_items(segment: Segment) -> UInt32[np.ndarray, " c"]:
    """Returns the item of every pair whose item was not removed."""
    return segment.items[_is_live(segment)] if len(segment.dead) else np.asarray(segment.items)


def _is_live(segment: Segment) -> Bool[np.ndarray, " c"]:
    """Returns whether the item of each pair was not removed."""
    items = segment.items
    is_dead = segment.dead[items >> np.uint32(6)] >> (items & np.uint32(63)).astype(np.uint64)
    return is_dead & np.uint64(1) == 0


def live_pairs(segment: Segment) -> tuple[UInt64[np.ndarray, " c *w"], UInt32[np.ndarray, " c"]]:
    """Returns the code and the item of every pair whose item was not removed."""
    words, items = all_pairs(segment)
    if not len(segment.dead):
        return words, items
    keep = _is_live(segment)
    return words[keep], items[keep]


def without_items(segment: Segment, item: Int[np.ndarray, " n"], num_bits: int) -> Segment:
    """Returns the segment of the base without some items.

    Removed items are marked in an array of one bit per possible item, up to the largest. Where the
    items are so sparse that this array would be larger than MAX_DEAD_BYTES and than
    DEAD_BYTES_PER_PAIR bytes per pair, the segment is built again without them instead.

    Args:
      segment: The segment.
      item: The items. Those that the segment does not have are ignored.
      num_bits: Code length q.
    """
    num_words = int(segment.items.max()) // 64 + 1 if len(segment.items) else 0
    if _is_sparse(num_words, len(segment.items)):
        words, items = live_pairs(segment)
        keep = ~np.isin(items, item)
        if keep.all() and not len(segment.dead):
            return segment
        return build_segment(words[keep], items[keep], num_bits)
    dead = segment.dead.copy() if len(segment.dead) else np.zeros(num_words, np.uint64)
    set_bits(item[item < 64 * num_words], dead)
    return segment._replace(dead=dead)


def _is_sparse(num_words: int, num_pairs: int) -> bool:
    """Returns True if a bitmap of all possible items is large for the number of pairs."""
    return 8 * num_words > max(MAX_DEAD_BYTES, DEAD_BYTES_PER_PAIR * num_pairs)


def reading_order(
    segment: Segment, queries: UInt64[np.ndarray, " m *w"], num_bits: int, threads: int | None = 1
) -> Int[np.ndarray, " m"]:
    """Returns an order of the queries in which neighbours read the same part of memory."""
    if len(queries) < QUERIES_PER_TASK or not len(segment.pivots):
        return np.arange(len(queries))
    rings = in_threads(
        lambda rows: rings_of(queries[rows], segment.pivots, num_bits),
        len(queries),
        threads,
        min_slice=16 * QUERIES_PER_TASK,
    )
    return np.argsort(np.concatenate(rings), kind="stable")


def rings_of(
    codes: UInt64[np.ndarray, " m *w"], pivots: UInt64[np.ndarray, " p *w"], num_bits: int
) -> Int64[np.ndarray, " m"]:
    """Returns the ring of each code: nearest pivot * (q + 1) + the distance to it."""
    if codes.ndim == 1:
        return build.assign_rings(codes, pivots, num_bits)
    return long_codes.rings_of(codes, np.arange(len(codes), dtype=np.uint64), pivots, num_bits)


def lookup_radius(segment: Segment, num_bits: int) -> int:
    """Returns the largest radius at which looking up codes costs less than reading rings.

    Codes of several words are never looked up: a query that has any within one bit is rare.
    """
    if num_bits > MAX_BITS:
        return -1
    radius, ring_codes = 0, len(segment.keys) * RING_SHARE
    largest = min(MAX_LOOKUP_RADIUS, num_bits)
    while radius < largest and comb(num_bits, radius + 1) * LOOKUP_COST < ring_codes:
        radius += 1
    return radius


def read_together(segment: Segment, num_queries: int) -> bool:
    """Returns whether queries for which most keys have to be read should do so together."""
    return num_queries > 1 and segment.keys.nbytes >= max(MIN_BYTES_TOGETHER, 1)


def _pairs(parts: Iterable[Segment]) -> list[np.ndarray]:
    """Returns the codes and the items of all pairs of segments that were not removed."""
    return [np.concatenate(arrays) for arrays in zip(*map(live_pairs, parts), strict=True)]


def restricted(segments: Segments, allowed: UInt32[np.ndarray, " a"], num_bits: int) -> Segments:
    """Returns segments in which only the allowed items are found.

    Few items are copied to segments of their own, because a search would have to read most codes
    to find them. Otherwise all others count as removed.
    """
    largest = max((int(part.items.max()) for part in segments if len(part.items)), default=-1)
    allowed = allowed[allowed <= largest]
    if _is_sparse(largest // 64 + 1, sum(len(part.items) for part in segments)):
        words, items = _pairs(segments)
        keep = np.isin(items, allowed)
        return Segments(build_segment(words[keep], items[keep], num_bits), empty_segment(num_bits))
    is_other = np.full(largest // 64 + 1, ~np.uint64(0))
    bits = np.zeros_like(is_other)
    set_bits(allowed, bits)
    is_other &= ~bits
    parts = []
    for part in segments:
        dead = is_other.copy()
        dead[: len(part.dead)] |= part.dead
        parts.append(part._replace(dead=dead))
    if REBUILD_SHARE * len(allowed) <= largest + 1:
        words, items = _pairs(parts)
        return Segments(build_segment(words, items, num_bits), empty_segment(num_bits))
    return Segments(*parts)
