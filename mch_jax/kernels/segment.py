"""The arrays of a segment, and kernels that read single buckets of it."""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt32, UInt64

from mch_jax.kernels.bits import hash_of, is_code, popcount
from mch_jax.kernels.jit import kernel, leaf

DIRECT_BITS = 16  # up to this code length, the table has a slot for every possible code
ROW_BITS = 40  # a bucket found is distance << ROW_BITS | row
ROW_MASK = (1 << ROW_BITS) - 1
DISTANCE_BITS = 11  # an item found is item << DISTANCE_BITS | distance
DISTANCE_MASK = (1 << DISTANCE_BITS) - 1
ITEM_BITS = 32
ZERO, NO_LIMIT = np.int64(0), np.int64(2**63 - 1)


class Segment(NamedTuple):
    """An immutable set of buckets: distinct codes, each with its items.

    Buckets are sorted by their nearest pivot, then by the distance to it (the ring), then by code.

    Attributes:
      keys: Distinct codes in that order, in blocks if they have more than one word (`bits`).
      offsets: The items of bucket i are items[offsets[i]:offsets[i + 1]].
      items: Items, ascending and distinct within a bucket.
      pivots: Codes around which the others are arranged.
      rings: Ring r of pivot i begins at row rings[i * (q + 1) + r] of `keys`.
      table: Hash table from a code to its row. An entry is 0 if empty, else row + 1. For codes of
        up to DIRECT_BITS bits the code is the slot; longer codes use open addressing, with bits of
        the hash above the row.
      dead: Bitmap of removed items; empty if none was removed.
    """

    keys: UInt64[np.ndarray, " d"] | UInt64[np.ndarray, "blocks w 8"]
    offsets: UInt32[np.ndarray, " d+1"]
    items: UInt32[np.ndarray, " c"]
    pivots: UInt64[np.ndarray, " p"] | UInt64[np.ndarray, "p w"]
    rings: UInt32[np.ndarray, " p*(q+1)+1"]
    table: UInt32[np.ndarray, " slots"]
    dead: UInt64[np.ndarray, " words"]


class Segments(NamedTuple):
    """All that a search reads. It is replaced as a whole, so that a search needs no lock.

    In kernels, rows of the delta are numbered after those of the base.

    Attributes:
      base: The large segment.
      delta: Codes added since the last merge. Its items are removed by rebuilding it, so that its
        `dead` is always empty.
    """

    base: Segment
    delta: Segment


class BucketItems(NamedTuple):
    """The fields of a segment that hold the items of its buckets.

    Functions called for every bucket take this instead of the whole segment: each array passed to a
    function that is not inlined costs seven words on the stack. (No function makes it from a
    segment: see `jit.leaf`.)
    """

    offsets: UInt32[np.ndarray, " d+1"]
    items: UInt32[np.ndarray, " c"]
    dead: UInt64[np.ndarray, " words"]


@kernel
def set_bits(items, bitmap):
    """Sets the bit of each item in a bitmap."""
    for item in items:
        bitmap[item >> np.uint32(6)] |= np.uint64(1) << np.uint64(item & np.uint32(63))


@leaf
def has_bit(bitmap, item):
    """Returns whether the bit of an item is set. Items past the end of the bitmap have none."""
    word = np.int64(item >> np.uint32(6))
    bit = np.uint64(item & np.uint32(63))
    return word < bitmap.size and (bitmap[word] >> bit) & np.uint64(1) == np.uint64(1)


@leaf
def find_row(table, keys, code, num_bits):
    """Returns the row of a code in `keys`, or -1 if it is not there."""
    if keys.ndim == 1:  # noqa: SIM102 - numba leaves out a branch only if nothing else decides it
        if num_bits <= DIRECT_BITS:
            return np.int64(table[np.int64(code)]) - 1
    bits = popcount(np.uint64(table.size - 1))
    hashed = hash_of(keys, code)
    slot = np.int64(hashed >> (np.uint64(64) - bits))
    row_mask = (np.uint64(1) << bits) - np.uint64(1)
    tag = (hashed << bits) & np.uint64(0xFFFFFFFF)
    while True:
        entry = np.uint64(table[slot])
        if entry == np.uint64(0):
            return -1
        if entry & ~row_mask == tag:
            row = np.int64(entry & row_mask) - 1
            if is_code(keys, row, code):
                return row
        slot = (slot + 1) & (table.size - 1)


@leaf
def first_slot(table, keys, code):
    """Returns the slot at which the search for a code begins in a table of hashed codes."""
    return np.int64(hash_of(keys, code) >> (np.uint64(64) - popcount(np.uint64(table.size - 1))))


@leaf
def live_size(buckets, row):
    """Returns the number of items of a bucket that were not removed."""
    start, stop = np.int64(buckets.offsets[row]), np.int64(buckets.offsets[row + 1])
    if buckets.dead.size == 0:
        return stop - start
    count = 0
    for i in range(start, stop):
        count += not has_bit(buckets.dead, buckets.items[i])
    return count
