"""When the filter of codes is made that lookups at a radius of two bits need."""

import numpy as np
from jaxtyping import UInt64

from mch_jax.index.words import MAX_BITS
from mch_jax.kernels import filter as filter_kernels
from mch_jax.kernels.segment import DIRECT_BITS, Segment

MIN_CODES = 2**17  # in a smaller segment, reading rings costs less than 2,016 tests of a filter
CODES_PER_QUERY = 4096  # a filter is made as soon as a query was asked for so many of the codes
BITS_PER_CODE, MAX_WORDS = 8, 2**26
_NONE = np.empty(0, np.uint64)


class LookupFilter:
    """Makes the filter of a segment once enough queries were asked to pay for it.

    Making it takes a few nanoseconds per code. It is kept in memory, and not saved.
    """

    def __init__(self):
        self._num_asked, self._keys, self._bitmap = 0, _NONE, _NONE

    def nbytes(self, segment: Segment) -> int:
        """Returns the size of the segment's filter in bytes; 0 if it has none."""
        return self._bitmap.nbytes if self._keys is segment.keys else 0

    def of(
        self, segment: Segment, num_bits: int, num_queries: int, may_make: bool = True
    ) -> UInt64[np.ndarray, " words"]:
        """Returns the filter of a segment, of size 0 if it is not worth making yet.

        Args:
          segment: The segment.
          num_bits: Code length q.
          num_queries: Number of queries that are asked now.
          may_make: Whether a filter may be made; not for a segment that serves only one call.
        """
        keys = segment.keys
        if not DIRECT_BITS < num_bits <= MAX_BITS or len(keys) < MIN_CODES:
            return _NONE
        known, bitmap = self._keys, self._bitmap
        if known is keys:
            return bitmap
        if not may_make:
            return _NONE
        self._num_asked += num_queries
        if self._num_asked * CODES_PER_QUERY < len(keys):
            return _NONE
        num_words = 1 << (BITS_PER_CODE * len(keys) // 64 - 1).bit_length()
        bitmap = np.zeros(min(num_words, MAX_WORDS), np.uint64)
        filter_kernels.fill(bitmap, keys)
        self._bitmap, self._keys, self._num_asked = bitmap, keys, 0
        return bitmap
