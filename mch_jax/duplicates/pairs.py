"""Near-duplicates among photos: from fingerprints to pairs and groups."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Int32, Int64, UInt8

from mch_jax import alignment, batched, components
from mch_jax.duplicates.fingerprints import Fingerprints, Maker
from mch_jax.files import whole_file
from mch_jax.index import BucketIndex
from mch_jax.training import logs

_QUERIES = 2048  # photos whose neighbours are looked for at one time
_PAIRS = 256  # pairs that are aligned at one time


class Member(NamedTuple):
    """A photo of a group.

    Attributes:
      row: Its position among the fingerprints.
      distance: Bits between it and the group's first photo.
    """

    row: int
    distance: int


def distances(
    whole: UInt8[np.ndarray, "k bytes"], codes: UInt8[np.ndarray, "k t bytes"]
) -> Int32[np.ndarray, "k t"]:
    """Returns the distances in bits between a photo's code and each code of another."""
    return np.bitwise_count(whole[:, None] ^ codes).sum(-1, dtype=np.int32)


def near_pairs(
    codes: UInt8[np.ndarray, "n t bytes"], num_bits: int, threshold: int
) -> Iterator[Int64[np.ndarray, "k 2"]]:
    """Yields the pairs of photos of which one's first code is near to any code of the other.

    Each pair occurs once, or twice where each is near to the other. Each array has the pairs of
    some consecutive photos, which come first in their pairs.

    Args:
      codes: Codes of each photo, that of the whole photo first. Equal codes may repeat.
      num_bits: Code length q.
      threshold: Largest distance in bits.
    """
    count, views, _ = codes.shape
    item = np.repeat(np.arange(count), views)
    index = BucketIndex.build(codes.reshape(count * views, -1), item, num_bits)
    for start in range(0, count, _QUERIES):
        queries = np.ascontiguousarray(codes[start : start + _QUERIES, 0])
        hits = index.within(queries, threshold)
        first = np.repeat(np.arange(start, start + len(queries)), np.diff(hits.offsets))
        pairs = np.stack([first, hits.item], 1)
        yield pairs[pairs[:, 0] != pairs[:, 1]]


def _agree(
    found: Fingerprints, maker: Maker, pairs: Int64[np.ndarray, "k 2"]
) -> Bool[np.ndarray, " k"]:
    """Returns which pairs show the same photo once the second is aligned with the first."""
    if not len(pairs):
        return np.zeros(0, bool)

    def batches() -> Iterator[tuple[np.ndarray, ...]]:
        for part in batched.split(pairs, _PAIRS):
            first, second = part.T
            starts = maker.starts(found.sizes[second])
            if starts.shape[1] > 1:
                view = distances(found.codes[first, 0], found.codes[second]).argmin(1)
                starts = starts[np.arange(len(part)), view]
            else:
                starts = starts[:, 0]
            small = (found.small[rows].astype(np.float32) for rows in (first, second))
            yield (*small, starts)

    scores = batched.apply_all(lambda batch: alignment.agreement(*batch), batches(), _PAIRS)
    return np.asarray(alignment.shows_the_same(*scores))


def pairs_of(
    found: Fingerprints, maker: Maker, threshold: int, verify: bool = True
) -> Int64[np.ndarray, "k 2"]:
    """Returns the pairs of near-duplicates, ascending, the smaller position first.

    Args:
      found: Fingerprints of the photos.
      maker: What made their codes.
      threshold: Largest distance in bits between a photo's code and any code of another.
      verify: Whether to compare the pixels of each pair too.
    """
    count, kept, looked_at = len(found.row), [np.zeros((0, 2), np.int64)], 0
    parts = near_pairs(found.codes, maker.num_bits, threshold) if count else ()
    for pairs in logs.progress(parts, count, "comparison", unit="photos", size=_QUERIES):
        looked_at += len(pairs)
        kept.append(pairs[_agree(found, maker, pairs)] if verify else pairs)
    result = np.unique(np.sort(np.concatenate(kept), axis=1), axis=0)
    logging.info("%d near codes, %d pairs of near-duplicates", looked_at, len(result))
    return result


def groups_of(
    found: Fingerprints, maker: Maker, threshold: int, verify: bool = True
) -> list[list[Member]]:
    """Returns the groups of near-duplicates: those that pairs connect, in the photos' order.

    The distance of a member is the least between its first code and any code of the group's first
    photo, or the reverse. It can exceed the threshold for two photos that a third one connects.

    Args:
      found: Fingerprints of the photos.
      maker: What made their codes.
      threshold: Largest distance of a pair, in bits.
      verify: Whether to compare the pixels of each pair too.
    """
    result = []
    for rows in components.connected(pairs_of(found, maker, threshold, verify), len(found.row)):
        codes, first = found.codes[rows], found.codes[rows[:1]]
        there = distances(codes[:, 0], np.broadcast_to(first, codes.shape)).min(1)
        back = distances(np.broadcast_to(first[:, 0], codes[:, 0].shape), codes).min(1)
        least = np.minimum(there, back)
        result.append([Member(int(r), int(d)) for r, d in zip(rows, least, strict=True)])
    return result


def write_csv(path: Path, found: Sequence[Sequence[Member]], names: Sequence[str]) -> None:
    """Writes the groups as a table (RFC 4180, UTF-8), completely or not at all.

    Args:
      path: Path of the file.
      found: The groups, which are numbered from 1.
      names: Names of the photos by their position among the fingerprints.
    """
    with whole_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("group", "file", "distance"))
        for number, group in enumerate(found, 1):
            writer.writerows((number, names[member.row], member.distance) for member in group)
