"""Codes and items of a codes file in the form in which the index keeps them."""

import numpy as np
from jaxtyping import Int, UInt8, UInt32, UInt64

MAX_BITS = 64  # a code is one word
MAX_ITEM = 2**32 - 1


def words_from_bytes(
    codes: UInt8[np.ndarray, "c bytes"], num_bits: int
) -> UInt64[np.ndarray, " c"]:
    """Returns codes as integers: bit i % 8 of byte i // 8 of a code is bit i of its word.

    Args:
      codes: Codes as in a codes file.
      num_bits: Code length q, up to 64.

    Raises:
      ValueError: Dtype, shape or padding are not those of codes of this length.
    """
    codes, num_bytes = np.asarray(codes), -(-num_bits // 8)
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != num_bytes:
        raise ValueError(
            f"codes are {codes.dtype} {list(codes.shape)}, expected uint8 [n, {num_bytes}] "
            f"for {num_bits} bits"
        )
    if num_bytes == 8:
        words = np.ascontiguousarray(codes).view("<u8")[:, 0]
    else:
        wide = np.zeros((len(codes), 8), np.uint8)
        wide[:, :num_bytes] = codes
        words = wide.view("<u8")[:, 0]
    if num_bits % 8 and len(words) and int(words.max()) >> num_bits:
        raise ValueError(f"codes have bits set past the {num_bits} that count; padding must be 0")
    return words


def checked_items(item: Int[np.ndarray, " n"], size: int | None = None) -> UInt32[np.ndarray, " n"]:
    """Returns items as the index keeps them.

    Args:
      item: Integers from 0 to MAX_ITEM.
      size: Number of items expected, if it is known.

    Raises:
      ValueError: The items are not such integers, or not as many as expected.
    """
    item = np.asarray(item)
    if item.ndim != 1 or (item.dtype.kind not in "iu" and item.size):
        raise ValueError(f"item is {item.dtype} {list(item.shape)}, expected integers [n]")
    if size is not None and len(item) != size:
        raise ValueError(f"item has {len(item)} entries for {size} codes; expected one per code")
    if len(item) and not 0 <= int(item.min()) <= int(item.max()) <= MAX_ITEM:
        raise ValueError(
            f"items range from {item.min()} to {item.max()}, expected 0 to {MAX_ITEM}: use the "
            "rows of a codes file"
        )
    return item.astype(np.uint32)
