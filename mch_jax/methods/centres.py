"""Centres of classes: codes that are far from each other, one for each class.

With a code length that is a power of two, centres are rows of a Hadamard matrix, which have
distance q / 2 from each other. Their order is drawn at random, because the first rows repeat their
first bits. If there are more classes than rows, the negated rows follow. Otherwise centres are
drawn at random, each with as many bits of either sign as possible, and each one as far from the
centres before it as the best of many draws.

Centres depend on the code length and the number of classes alone. The models of all folds and of
all seeds therefore share them.
"""

import numpy as np
from jaxtyping import Float

_NUM_DRAWS = 256  # candidates for each random centre


def class_centres(num_classes: int, num_bits: int) -> Float[np.ndarray, "c q"]:
    """Returns a code in {-1, +1} for each class.

    Args:
      num_classes: Number c of classes.
      num_bits: Code length q.
    """
    rng = np.random.default_rng([num_bits, num_classes])
    if num_bits & (num_bits - 1) or num_classes > 2 * num_bits:
        return _random_centres(num_classes, num_bits, rng)
    rows = hadamard(num_bits)[rng.permutation(num_bits)]
    return np.concatenate([rows, -rows])[:num_classes]


def hadamard(size: int) -> Float[np.ndarray, "q q"]:
    """Returns Sylvester's Hadamard matrix, whose entry (i, j) is (-1)^(number of bits of i & j).

    Args:
      size: Number of rows, a power of two.
    """
    number = np.arange(size)
    return np.where(np.bitwise_count(number[:, None] & number[None]) % 2, -1.0, 1.0).astype("f4")


def _random_centres(
    num_classes: int, num_bits: int, rng: np.random.Generator
) -> Float[np.ndarray, "c q"]:
    balanced = np.where(np.arange(num_bits) % 2, -1.0, 1.0).astype(np.float32)
    chosen = np.empty((num_classes, num_bits), np.float32)
    for i in range(num_classes):
        drawn = rng.permuted(np.tile(balanced, (_NUM_DRAWS, 1)), axis=1)
        # The nearest centre before decides; the sum breaks ties.
        product = drawn @ chosen[:i].T
        nearest = product.max(1, initial=-num_bits)
        chosen[i] = drawn[np.lexsort((product.sum(1), nearest))[0]]
    return chosen
