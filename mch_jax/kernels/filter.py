"""A filter of codes: a bitmap that tells which codes are surely not in a segment.

The hash of a code is the XOR of fixed random words, one for each bit that is set in it (a linear
hash). The hash of a code with two bits flipped therefore is that of the code, XORed with the words
of these bits. All C(q, 2) codes at a distance of two bits are tested in a few cycles each; without
the filter, each would cost a lookup in the hash table.
"""

import numpy as np

from mch_jax.kernels.jit import kernel, leaf

# The hash of each bit of a code, and of each value of each of its bytes. Kernels contain them.
_OF_BIT = np.random.default_rng(0).integers(0, 2**32, 64, np.uint64)
_OF_BYTE = np.zeros((8, 256), np.uint64)
for _bit in range(8):
    _OF_BYTE[:, np.arange(256) >> _bit & 1 == 1] ^= _OF_BIT[_bit::8, None]


@leaf
def _hash_of(code):
    """Returns the linear hash of a code, 32 bits."""
    hashed = np.uint64(0)
    for i in range(8):
        hashed ^= _OF_BYTE[i, np.int64(code & np.uint64(255))]
        code >>= np.uint64(8)
    return hashed


@leaf
def _has_bit(bitmap, hashed):
    """Returns 1 if the bit of a hash is set, else 0. The number of words is a power of two."""
    word = bitmap[np.int64(hashed >> np.uint64(6)) & (bitmap.size - 1)]
    return np.int64((word >> (hashed & np.uint64(63))) & np.uint64(1))


@kernel
def fill(bitmap, keys):
    """Sets the bit of each code.

    Args:
      bitmap: uint64, zeros; its size is a power of two, at most 2^26.
      keys: Codes of one word.
    """
    for code in keys:
        hashed = _hash_of(code)
        word = np.int64(hashed >> np.uint64(6)) & (bitmap.size - 1)
        bitmap[word] |= np.uint64(1) << (hashed & np.uint64(63))


@leaf
def possible_pairs(bitmap, query, num_bits, flips):
    """Fills `flips` with the pairs of bits that may lead from the query to a code.

    Args:
      bitmap: As `fill` leaves it.
      query: The query's code.
      num_bits: Code length q.
      flips: uint64, a buffer for C(q, 2) + 1 flip masks; changed.

    Returns:
      The number of flip masks.
    """
    hashed, count = _hash_of(query), np.int64(0)
    for i in range(1, num_bits):
        one, high = hashed ^ _OF_BIT[i], np.uint64(1) << np.uint64(i)
        for j in range(i):
            flips[count] = high | (np.uint64(1) << np.uint64(j))
            count += _has_bit(bitmap, one ^ _OF_BIT[j])
    return count
