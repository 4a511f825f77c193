"""Codes of more than 64 bits: several words each, in blocks, and their counts of Algorithm 1.

A code of w words is a row of uint64 [c, w] until its segment is built. There, codes lie in blocks:
uint64 [blocks, w, 8] (`kernels.bits`). Everything else of a segment is as for one word.
"""

import functools
import itertools
from math import comb

import numpy as np
from jaxtyping import Int64, UInt32, UInt64

from mch_jax.kernels import build, build_long
from mch_jax.kernels.bits import BLOCK_ROWS
from mch_jax.kernels.segment import Segment, Segments

PIVOT_SAMPLE = 2**14  # candidates among which pivots are chosen
PIVOT_SUPPORT = 8  # candidates near a pivot that justify it
PIVOT_ROUNDS = 2
MAJORITY_OF = 256  # codes that decide a centre


def num_words(num_bits: int) -> int:
    """Returns the number of words of a code."""
    return -(-num_bits // 64)


def grouped(
    words: UInt64[np.ndarray, "c w"], item: UInt32[np.ndarray, " c"]
) -> tuple[UInt64[np.ndarray, " d"], UInt32[np.ndarray, " d+1"], UInt32[np.ndarray, " n"]]:
    """Returns a row of each distinct code, and the offsets and items of their buckets."""
    hashed = build_long.hashes(words)
    return build_long.group_by_code(words, hashed, np.argsort(hashed), item)


def in_blocks(
    words: UInt64[np.ndarray, "c w"], rows: UInt64[np.ndarray, " d"]
) -> UInt64[np.ndarray, "blocks w 8"]:
    """Returns some rows of `words` in blocks, which begin at a cache line."""
    shape = -(-len(rows) // BLOCK_ROWS), words.shape[1], BLOCK_ROWS
    larger = np.empty(shape[0] * shape[1] * shape[2] + 8, np.uint64)
    start = -larger.ctypes.data % 64 // 8
    blocks = larger[start : start + len(larger) - 8].reshape(shape)
    build_long.fill_blocks(words, rows, blocks)
    return blocks


def rings_of(
    words: UInt64[np.ndarray, "c w"],
    rows: UInt64[np.ndarray, " d"],
    pivots: UInt64[np.ndarray, "p w"],
    num_bits: int,
) -> Int64[np.ndarray, " d"]:
    """Returns the ring of some rows of `words`: nearest pivot * (q + 1) + the distance to it."""
    if not len(pivots):
        return np.zeros(len(rows), np.int64)
    blocks = in_blocks(pivots, np.arange(len(pivots), dtype=np.uint64))
    return build_long.assign_rings(words, rows, blocks, len(pivots), num_bits)


def choose_pivots(
    candidates: UInt64[np.ndarray, "n w"], limit: int, num_bits: int
) -> UInt64[np.ndarray, "p w"]:
    """Returns up to `limit` pivots: the centres of the clusters of the candidates.

    Of long codes, hardly any two are equal, and even those of one cluster are far from each other.
    Their majority is half as far from them, so that its rings are narrower. A code that few others
    are near is no pivot: the triangle inequality would exclude next to nothing, and each pivot
    interrupts the reading of keys. Where there is no cluster, the first candidate is the only one.
    """
    if not limit:
        return candidates[:0].copy()
    separation, rows = num_bits // 6, np.arange(len(candidates), dtype=np.uint64)
    pivots = build.choose_pivots(candidates, separation, limit)
    for _ in range(PIVOT_ROUNDS):
        ring = rings_of(candidates, rows, pivots, num_bits)
        pivot = np.where(ring % (num_bits + 1) <= num_bits // 4, ring // (num_bits + 1), -1)
        size = np.bincount(pivot + 1, minlength=len(pivots) + 1)[1:]
        largest = np.argsort(-size, kind="stable")
        largest = largest[: max(1, np.count_nonzero(size >= PIVOT_SUPPORT))]
        order = np.argsort(pivot, kind="stable")
        bounds = np.searchsorted(pivot[order], np.arange(len(pivots) + 1))
        centres = [
            majority(candidates[order[bounds[i] : bounds[i + 1]]]) if size[i] else pivots[i]
            for i in largest
        ]
        pivots = build.choose_pivots(np.array(centres), separation, limit)
    return pivots


def majority(words: UInt64[np.ndarray, "n w"]) -> UInt64[np.ndarray, " w"]:
    """Returns the code that has every bit as most of the codes; ties are 0."""
    raw = np.ascontiguousarray(words[:MAJORITY_OF].astype("<u8")).view(np.uint8)
    bits = np.unpackbits(raw, axis=1, bitorder="little").mean(0) > 0.5
    return np.packbits(bits, bitorder="little").view("<u8").astype(np.uint64)


def build_segment(words, item, num_bits: int, choose_candidates, table_size) -> Segment:
    """Returns the segment of codes of several words; see `segment.build_segment`."""
    rows, offsets, items = grouped(words, item)
    candidates, limit = choose_candidates(offsets)
    pivots = choose_pivots(words[rows[candidates[:PIVOT_SAMPLE]]], limit, num_bits)
    ring, num_rings = rings_of(words, rows, pivots, num_bits), len(pivots) * (num_bits + 1)
    ordered = np.empty(len(rows), np.uint64)
    offsets, items, rings = build.sort_by_ring(rows, offsets, items, ring, num_rings, ordered)
    keys, table = in_blocks(words, ordered), np.zeros(table_size(len(rows)), np.uint32)
    build.fill_table(keys, len(rows), table, num_bits)
    return Segment(keys, offsets, items, pivots, rings, table, np.empty(0, np.uint64))


def words_of(segment: Segment) -> UInt64[np.ndarray, "d w"]:
    """Returns the distinct codes of a segment as rows of words."""
    flat = np.swapaxes(segment.keys, 1, 2).reshape(-1, segment.keys.shape[1])
    return flat[: len(segment.offsets) - 1]


def row_words(segments: Segments, rows: Int64[np.ndarray, " n"]) -> UInt64[np.ndarray, "n w"]:
    """Returns codes by their rows among the rows of both segments."""
    base, delta = segments
    delta_row = len(base.offsets) - 1
    words = np.empty((len(rows), base.keys.shape[1]), np.uint64)
    for keys, chosen, first in (
        (base.keys, rows < delta_row, 0),
        (delta.keys, rows >= delta_row, delta_row),
    ):
        own = rows[chosen] - first
        words[chosen] = keys[own >> 3, :, own & 7]
    return words


@functools.cache
def _binomials(num_bits: int, ones: int) -> list[int]:
    """Returns C(n, ones) for n from 0 to the code length."""
    if ones == 0:
        return [1] * (num_bits + 1)
    return list(itertools.accumulate(_binomials(num_bits, ones - 1)[:-1], initial=0))


@functools.cache
def _num_nearer(num_bits: int, distance: int) -> int:
    """Returns the number of buckets nearer than a distance."""
    return sum(comb(num_bits, i) for i in range(distance))


def num_visited(mask: int, num_bits: int) -> int:
    """Returns the number of buckets that Algorithm 1 visits up to the one at a flip mask.

    Those are the nearer ones, and those of smaller masks with as many bits set, whose number is the
    rank of the mask in the combinatorial number system.
    """
    return _num_visited([i for i, digit in enumerate(bin(mask)[:1:-1]) if digit == "1"], num_bits)


def _num_visited(ones: list[int], num_bits: int) -> int:
    """Returns what `num_visited` returns, from the positions of the ones of a mask."""
    rank = sum(_binomials(num_bits, i)[one] for i, one in enumerate(ones, 1))
    return _num_nearer(num_bits, len(ones)) + rank + 1


def probed_counts(
    segments: Segments,
    queries: UInt64[np.ndarray, "m w"],
    last: UInt64[np.ndarray, " m"],
    num_bits: int,
) -> np.ndarray:
    """Returns the buckets visited up to the row of each query, in int64 where all fit.

    Args:
      segments: Base and delta.
      queries: Codes of the queries.
      last: 1 + the row of the last bucket, or 0 if all 2^q buckets are visited.
      num_bits: Code length q.
    """
    counts = np.full(len(queries), 1 << num_bits, object)
    complete = np.flatnonzero(last)
    masks = row_words(segments, last[complete].astype(np.int64) - 1) ^ queries[complete]
    bits = np.unpackbits(masks.astype("<u8").view(np.uint8), axis=1, bitorder="little")
    bounds = np.cumsum(bits.sum(1, dtype=np.int64))
    ones = np.split(np.nonzero(bits)[1], bounds[:-1]) if len(bounds) else []
    for m, own in zip(complete.tolist(), ones, strict=True):
        counts[m] = _num_visited(own.tolist(), num_bits)
    if max(counts, default=0) < 1 << 63:
        return counts.astype(np.int64)
    return counts
