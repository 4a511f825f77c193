"""Builds a segment from a stream of codes, in memory that exceeds the segment's by little.

The pairs of code and item lie in a temporary file, of 12 bytes each, in blocks that are sorted by
ring. Consecutive rings of all blocks are then read, sorted and appended to the segment, a few
million pairs at a time. Only codes of up to 64 bits are built in this way.
"""

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8, UInt32, UInt64

from mch_jax.index import segment
from mch_jax.index.words import MAX_BITS, checked_items, words_from_bytes
from mch_jax.kernels import build
from mch_jax.kernels.segment import Segment, Segments
from mch_jax.kernels.threads import in_threads

BLOCK_PAIRS = 2**20  # pairs of a block of the file; fewer in all are built in memory
UNIT_PAIRS = 2**21  # pairs that are sorted at once, unless a single ring has more
SAMPLE_PAIRS = 2**21  # pairs among which pivots are chosen, at most twice as many
MERGED_PAIRS = 2**22  # pairs above which two segments are merged as a stream

Pairs = tuple[UInt64[np.ndarray, " c"], UInt32[np.ndarray, " c"]]


class _Block(NamedTuple):
    """A block of the file: the codes of its pairs, then their items.

    Attributes:
      begin: Position in the file.
      size: Number of pairs.
    """

    begin: int
    size: int


def pairs_of(
    blocks: Iterable[tuple[UInt8[np.ndarray, "c bytes"], Int[np.ndarray, " c"]]], num_bits: int
) -> Iterator[Pairs]:
    """Yields the blocks of `BucketIndex.build_from` as the index keeps them.

    Raises:
      ValueError: A block has the wrong form.
    """
    for i, (codes, item) in enumerate(blocks):
        try:
            yield words_from_bytes(codes, num_bits), checked_items(item, len(codes))
        except ValueError as error:
            raise ValueError(f"block {i}: {error}") from None


def build_segment(
    pairs: Iterable[Pairs], num_bits: int, directory: str | os.PathLike | None = None
) -> Segment:
    """Returns the segment of a stream of pairs in any order. Repeated pairs count once.

    Args:
      pairs: Codes and their items.
      num_bits: Code length q. Codes of more than 64 bits are collected in memory.
      directory: Where to make the temporary file. Defaults to that of the system.

    Raises:
      ValueError: There are 2^32 codes or more.
    """
    blocks = _regrouped(pairs)
    first = next(blocks, None)
    if first is None:
        return segment.empty_segment(num_bits)
    if num_bits > MAX_BITS or len(first[0]) < BLOCK_PAIRS:
        words, item = (np.concatenate(x) for x in zip(first, *blocks, strict=True))
        return segment.build_segment(words, item, num_bits)
    with tempfile.TemporaryFile(dir=directory) as file:
        written, sample = _written(file, itertools.chain([first], blocks))
        del first
        pivots = segment.pivots_of(*sample, num_bits)
        del sample
        rings = [_sort_by_ring(file, block, pivots, num_bits) for block in written]
        keys, offsets, items, bounds = _assembled(file, written, rings, pivots, num_bits)
    table = np.zeros(segment.num_slots(len(keys), num_bits), np.uint32)
    build.fill_table(keys, len(keys), table, num_bits)
    return Segment(keys, offsets, items, pivots, bounds, table, np.empty(0, np.uint64))


def merged(segments: Segments, num_bits: int) -> Segment:
    """Returns one segment of what base and delta have, without removed items."""
    if num_bits > MAX_BITS or sum(len(part.items) for part in segments) < MERGED_PAIRS:
        parts = [segment.live_pairs(segments.base), segment.all_pairs(segments.delta)]
        words, item = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        del parts
        return segment.build_segment(words, item, num_bits)
    return build_segment((x for part in segments for x in _live_pairs(part)), num_bits)


def _live_pairs(part: Segment) -> Iterator[Pairs]:
    """Yields the pairs of a segment whose items were not removed, some buckets at a time."""
    for row in range(0, len(part.keys), BLOCK_PAIRS):
        offsets = part.offsets[row : row + BLOCK_PAIRS + 1]
        items = part.items[offsets[0] : offsets[-1]]
        few = part._replace(
            keys=part.keys[row : row + BLOCK_PAIRS], offsets=offsets - offsets[0], items=items
        )
        yield segment.live_pairs(few)


def _regrouped(pairs: Iterable[Pairs]) -> Iterator[Pairs]:
    """Yields the same pairs in blocks of BLOCK_PAIRS, the last one smaller."""
    waiting, size = [], 0
    for words, item in pairs:
        for start in range(0, len(words), BLOCK_PAIRS):
            part = slice(start, start + BLOCK_PAIRS)
            waiting.append((words[part], item[part]))
            size += len(waiting[-1][0])
            if size >= BLOCK_PAIRS:
                whole = [np.concatenate(arrays) for arrays in zip(*waiting, strict=True)]
                waiting, size = [tuple(array[BLOCK_PAIRS:] for array in whole)], size - BLOCK_PAIRS
                yield whole[0][:BLOCK_PAIRS], whole[1][:BLOCK_PAIRS]
    if size:
        words, item = (np.concatenate(arrays) for arrays in zip(*waiting, strict=True))
        yield words, item


def _written(
    file: IO[bytes], blocks: Iterable[Pairs]
) -> tuple[list[_Block], tuple[UInt64[np.ndarray, " d"], UInt32[np.ndarray, " d+1"]]]:
    """Writes all blocks to the file; returns them, and the buckets of a sample of their pairs."""
    written, sample, step = [], [], 1
    for words, item in blocks:
        written.append(_Block(file.tell(), len(words)))
        file.write(np.ascontiguousarray(words).data)
        file.write(np.ascontiguousarray(item).data)
        sample.append((words[::step].copy(), item[::step].copy()))
        if sum(len(part[0]) for part in sample) > 2 * SAMPLE_PAIRS:
            sample, step = [(x[::2].copy(), y[::2].copy()) for x, y in sample], 2 * step
    total = sum(block.size for block in written)
    if total >= 2**32:
        raise ValueError(f"{total} codes, expected fewer than 2^32; use several indexes")
    words, item = (np.concatenate(arrays) for arrays in zip(*sample, strict=True))
    order = np.argsort(words)
    keys, offsets, _ = build.group_by_code(words[order], item[order])
    return written, (keys, offsets)


def _read(file: IO[bytes], block: _Block, start: int, stop: int) -> Pairs:
    """Returns the pairs of a block from `start` to `stop`."""
    words, item = np.empty(stop - start, np.uint64), np.empty(stop - start, np.uint32)
    for array, begin in ((words, block.begin), (item, block.begin + 8 * block.size)):
        file.seek(begin + array.itemsize * start)
        array.view(np.uint8)[:] = np.frombuffer(file.read(array.nbytes), np.uint8)
    return words, item


def _sort_by_ring(
    file: IO[bytes], block: _Block, pivots: UInt64[np.ndarray, " p"], num_bits: int
) -> UInt32[np.ndarray, " rings+1"]:
    """Sorts a block of the file by ring; returns where each ring begins among its pairs."""
    words, item = _read(file, block, 0, block.size)
    ring = np.concatenate(
        in_threads(lambda rows: segment.rings_of(words[rows], pivots, num_bits), block.size)
    )
    num_rings = len(pivots) * (num_bits + 1)
    order = np.argsort(ring.astype(np.uint16), kind="stable")  # 256 pivots have 16,640 rings
    file.seek(block.begin)
    file.write(words[order].data)
    file.write(item[order].data)
    sizes = np.bincount(ring, minlength=num_rings)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint32)


def _units(sizes: Int[np.ndarray, " rings"]) -> list[int]:
    """Returns the bounds of groups of consecutive rings: UNIT_PAIRS pairs each, or one ring."""
    bounds, size = [0], 0
    for ring, more in enumerate(sizes.tolist()):
        if size and size + more > UNIT_PAIRS:
            bounds.append(ring)
            size = 0
        size += more
    return [*bounds, len(sizes)]


def _assembled(
    file: IO[bytes],
    blocks: list[_Block],
    rings: list[UInt32[np.ndarray, " rings+1"]],
    pivots: UInt64[np.ndarray, " p"],
    num_bits: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns keys, offsets, items and rings of the segment, from the sorted blocks of the file."""
    sizes = np.zeros(len(pivots) * (num_bits + 1), np.int64)
    for bounds in rings:
        sizes += np.diff(bounds)
    total, width = int(sizes.sum()), num_bits + 1
    # Repeated codes leave the ends of these arrays unused, which then take no memory.
    keys, items = segment.cache_aligned(total), np.empty(total, np.uint32)
    offsets, starts = np.zeros(total + 1, np.uint32), np.empty(len(sizes) + 1, np.uint32)
    num_keys = num_items = 0
    for first, stop in itertools.pairwise(_units(sizes)):
        parts = [
            _read(file, block, int(bounds[first]), int(bounds[stop]))
            for block, bounds in zip(blocks, rings, strict=True)
        ]
        words, item = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        del parts
        order = np.argsort(words)
        own_keys, own_offsets, own_items = build.group_by_code(words[order], item[order])
        del words, item, order
        low, high = first // width, -(-stop // width)  # the pivots of these rings
        ring = build.assign_rings(own_keys, pivots[low:high], num_bits) + (low * width - first)
        target = keys[num_keys : num_keys + len(own_keys)]
        own_offsets, own_items, own_starts = build.sort_by_ring(
            own_keys, own_offsets, own_items, ring, stop - first, target
        )
        starts[first:stop] = own_starts[:-1] + np.uint32(num_keys)
        offsets[num_keys : num_keys + len(own_offsets)] = own_offsets + np.uint32(num_items)
        items[num_items : num_items + len(own_items)] = own_items
        num_keys, num_items = num_keys + len(own_keys), num_items + len(own_items)
    starts[-1] = num_keys
    return keys[:num_keys], offsets[: num_keys + 1], items[:num_items], starts
