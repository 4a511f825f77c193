"""Codes and items of a codes file in the form in which the index keeps them."""

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8, UInt32, UInt64

MAX_BITS = 64  # of a code that is one word, and of codes that are trained
MAX_LONG_BITS = 1024  # of a code of several words
MAX_ITEM = 2**32 - 1


def checked_num_bits(num_bits: int) -> int:
    """Returns a code length, or raises ValueError if an index cannot have it."""
    if not 1 <= num_bits <= MAX_LONG_BITS:
        raise ValueError(
            f"num_bits is {num_bits}, expected 1 to {MAX_LONG_BITS}; rank longer codes with "
            "mch_jax.metrics instead"
        )
    return int(num_bits)


def words_from_bytes(
    codes: UInt8[np.ndarray, "c bytes"], num_bits: int
) -> UInt64[np.ndarray, " c *w"]:
    """Returns codes as integers: bit i % 8 of byte i // 8 of a code is bit i of its word.

    Codes of more than 64 bits are rows of words: bit i is bit i % 64 of word i // 64.

    Args:
      codes: Codes as in a codes file.
      num_bits: Code length q, up to 1,024.

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
        wide = np.zeros((len(codes), -(-num_bytes // 8) * 8), np.uint8)
        wide[:, :num_bytes] = codes
        words = wide.view("<u8")
        words = words[:, 0] if num_bits <= MAX_BITS else words
    if num_bits % 8 and codes.size and int(codes[:, -1].max()) >> num_bits % 8:
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


def checked_margins(
    margins: Float32[np.ndarray, "*shape q"], shape: tuple[int, ...], num_bits: int
) -> Float32[np.ndarray, "m t q"]:
    """Returns the margins of query codes, the absolute values of the logits.

    Args:
      margins: One per bit of each code.
      shape: Shape of the codes without their bytes: [m], or [m, t] for several codes per query.
      num_bits: Code length q.

    Raises:
      ValueError: The margins have another dtype or shape, or one is negative or not finite.
    """
    margins = np.asarray(margins)
    expected = (*shape, num_bits)
    if margins.dtype != np.float32 or margins.shape != expected:
        raise ValueError(
            f"margins are {margins.dtype} {list(margins.shape)}, expected float32 "
            f"{list(expected)}: the absolute value of the logit of each bit of each query code"
        )
    if margins.size and not (margins.min() >= 0 and margins.max() < np.inf):
        wrong = margins[~((margins >= 0) & (margins < np.inf))][0]
        raise ValueError(
            f"a margin is {wrong}, expected finite values of at least 0: take the absolute value "
            "of each logit"
        )
    rows = margins if len(shape) == 2 else margins[:, None]
    return np.ascontiguousarray(rows)


def query_words(
    query_codes: UInt8[np.ndarray, "..."], num_bits: int
) -> UInt64[np.ndarray, "m t *w"]:
    """Returns the codes of queries as integers.

    Args:
      query_codes: [m, bytes], or [m, t, bytes] for several codes per query.
      num_bits: Code length q.

    Raises:
      ValueError: Dtype, shape or padding are not those of codes of this length.
    """
    codes = np.asarray(query_codes)
    if codes.ndim != 3:
        return words_from_bytes(codes, num_bits)[:, None]
    num_queries, num_codes, num_bytes = codes.shape
    if num_codes == 0:
        raise ValueError(f"query codes are {list(codes.shape)}, expected at least one per query")
    words = words_from_bytes(codes.reshape(num_queries * num_codes, num_bytes), num_bits)
    return words.reshape(num_queries, num_codes, *words.shape[1:])


def allowed_items(
    allowed: Int[np.ndarray, " a"] | Bool[np.ndarray, " n"],
) -> UInt32[np.ndarray, " a"]:
    """Returns the items that an answer may contain, ascending.

    Args:
      allowed: Items in ascending order, or whether each item from 0 on is allowed.

    Raises:
      ValueError: It is neither.
    """
    allowed = np.asarray(allowed)
    if allowed.ndim != 1 or (allowed.dtype.kind not in "iub" and allowed.size):
        raise ValueError(
            f"allowed is {allowed.dtype} {list(allowed.shape)}, expected ascending integers [a] or "
            "bool [n]"
        )
    if allowed.dtype.kind == "b":
        return np.flatnonzero(allowed).astype(np.uint32)
    if (allowed[1:] <= allowed[:-1]).any():
        raise ValueError("allowed is not ascending, expected each item once: use numpy.unique")
    return checked_items(allowed)
