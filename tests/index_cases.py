"""Random indexes, changes to them, and queries with margins, for the tests of the index."""

import numpy as np

from mch_jax.index import BucketIndex


def pack(words, num_bits):
    """Returns codes given as integers in the bytes of a codes file."""
    words = np.asarray(words, np.uint64)
    num_bytes = -(-num_bits // 8)
    return words.astype("<u8").reshape(-1).view(np.uint8).reshape(*words.shape, 8)[..., :num_bytes]


def build(pairs, num_bits):
    """Returns an index of pairs of code and item."""
    codes = pack([code for code, _ in pairs], num_bits)
    return BucketIndex.build(codes, np.array([item for _, item in pairs], np.int64), num_bits)


def random_pairs(rng, num_bits, size):
    """Returns codes around a few centres, and their items."""
    centres = rng.integers(0, 1 << num_bits, 3)
    flips = 1 << rng.integers(0, num_bits, (size, 2))
    codes = centres[rng.integers(0, 3, size)] ^ flips[:, 0] ^ flips[:, 1]
    return list(zip(codes.tolist(), rng.integers(0, 90, size).tolist(), strict=True))


def add(index, pairs):
    codes, item = zip(*pairs, strict=True) if pairs else ((), ())
    index.add(pack(codes, index.num_bits), np.array(item, np.int64))


def changed(index, pairs, rng, directory):
    """Changes an index and its pairs in a random way; returns both."""
    num_bits = index.num_bits
    more = random_pairs(rng, num_bits, int(rng.integers(1, 30)))
    again = [pairs[i] for i in rng.integers(0, len(pairs), 3)] if pairs else []
    for step in rng.permutation(5)[: rng.integers(0, 6)]:
        if step == 0:
            add(index, more)
            pairs = pairs + more
        elif step == 1:
            gone = rng.integers(0, 90, 12)
            index.remove(gone)
            pairs = [pair for pair in pairs if pair[1] not in gone]
        elif step == 2:
            add(index, again)  # pairs that exist, or items that were removed
            pairs = pairs + again
        elif step == 3:
            index.save(directory)
            index = BucketIndex.open(directory)
        else:
            index.merge()
    return index, pairs


def random_margins(rng, shape):
    """Returns multiples of 1/8: distinct ones, many equal ones, with zeros, or only zeros."""
    steps = [400, 4, 2, 1][rng.integers(0, 4)]
    return (rng.integers(0, steps, shape) / 8).astype(np.float32)
