"""The filter of codes: it misses none, and it is made when enough queries were asked."""

import numpy as np
import pytest

from mch_jax.index import BucketIndex, filters
from mch_jax.kernels import filter as kernels_filter


@pytest.mark.parametrize("num_bits", [17, 40, 64])
def test_the_filter_misses_no_code(num_bits):
    rng = np.random.default_rng(num_bits)
    keys = rng.integers(0, 2**num_bits, 3000, np.uint64)
    bitmap = np.zeros(256, np.uint64)
    kernels_filter.fill(bitmap, keys)
    buffer = np.empty(64 * 63 // 2 + 1, np.uint64)
    pairs = [1 << i | 1 << j for i in range(num_bits) for j in range(i)]
    for query in [
        *keys[:20],
        *(keys[:20] ^ np.uint64(5)),
        *rng.integers(0, 2**num_bits, 20, np.uint64),
    ]:
        count = kernels_filter.possible_pairs(bitmap, np.uint64(query), num_bits, buffer)
        possible = buffer[:count].tolist()
        assert set(possible) <= set(pairs)
        assert len(set(possible)) == count < len(pairs)
        known = set(keys.tolist())
        assert set(possible) >= {flips for flips in pairs if int(query) ^ flips in known}


def test_a_filter_is_made_when_it_pays(monkeypatch):
    monkeypatch.setattr(filters, "MIN_CODES", 1000)
    codes = np.random.default_rng(0).integers(0, 256, (2 * filters.CODES_PER_QUERY, 4), np.uint8)
    index = BucketIndex.build(codes, np.arange(len(codes)), 32)
    size = index.nbytes
    index.search(codes[:1], 1)
    assert index.nbytes == size
    index.search(codes[:1], 1)
    assert size < index.nbytes < size + 2 * len(codes)
    size = index.nbytes
    index.add(codes[:1], np.array([5]))
    index.merge()
    assert index.nbytes < size
    index.search(codes[:2], 1, allowed=np.arange(3))  # these few have a segment of their own
    assert index.nbytes < size
    index.search(codes[:2], 1)
    assert index.nbytes >= size
