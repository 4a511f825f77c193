"""Centres of classes: codes that are far from each other, one for each class.

With a code length that is a power of two, centres are rows of a Hadamard matrix, which have
distance q / 2 from each other. Their order is drawn at random, because the first rows repeat their
first bits. If there are more classes than rows, the negated rows follow. Otherwise centres are
drawn at random, each with as many bits of either sign as possible, and each one as far from the
centres before it as the best of many draws.

Centres depend on the code length and the number of classes alone. The models of all folds and of
all seeds therefore share them.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def class_centres(num_classes: int, num_bits: int) -> Float[np.ndarray, "c q"]:
    """Returns a code in {-1, +1} for each class.

    Args:
      num_classes: Number c of classes.
      num_bits: Code length q.
    """
    rng = np.random.default_rng([num_bits, num_classes])
    if num_bits & (num_bits - 1) or num_classes > 2 * num_bits:
        return random_centres(num_classes, num_bits, rng, num_draws=256)
    rows = hadamard(num_bits)[rng.permutation(num_bits)]
    return np.concatenate([rows, -rows])[:num_classes]


def hadamard(size: int) -> Float[np.ndarray, "q q"]:
    """Returns Sylvester's Hadamard matrix, whose entry (i, j) is (-1)^(number of bits of i & j).

    Args:
      size: Number of rows, a power of two.
    """
    number = np.arange(size)
    return np.where(np.bitwise_count(number[:, None] & number[None]) % 2, -1.0, 1.0).astype("f4")


def random_centres(
    num_classes: int, num_bits: int, rng: np.random.Generator, *, num_draws: int = 1
) -> Float[np.ndarray, "c q"]:
    """Returns random codes with as many bits of either sign as possible, one for each class.

    Args:
      num_classes: Number c of classes.
      num_bits: Code length q.
      rng: Random generator.
      num_draws: Number of draws for each centre. The one whose nearest centre so far is the
        farthest is used.
    """
    balanced = np.where(np.arange(num_bits) % 2, -1.0, 1.0).astype(np.float32)
    chosen = np.empty((num_classes, num_bits), np.float32)
    for i in range(num_classes):
        drawn = rng.permuted(np.tile(balanced, (num_draws, 1)), axis=1)
        # The nearest centre before decides; the sum breaks ties.
        product = drawn @ chosen[:i].T
        nearest = product.max(1, initial=-num_bits)
        chosen[i] = drawn[np.lexsort((product.sum(1), nearest))[0]]
    return chosen


def majority(
    targets: Float[Array, "b c"], centres: Float[np.ndarray, "c q"]
) -> Float[Array, "b q"]:
    """Returns the centre of each image: in every bit the sign that most centres of its labels have.

    A tie, such as that of an image without labels, takes the bit of a random code that is the same
    for all images.

    Args:
      targets: Multi-hot labels of the images.
      centres: Centre of each class.
    """
    rng = np.random.default_rng(centres.shape)
    tie = rng.choice(np.array([-1.0, 1.0], np.float32), centres.shape[1])
    votes = targets @ jnp.asarray(centres)
    return jnp.where(votes == 0, jnp.asarray(tie)[None], jnp.sign(votes))


def photo_pair_loss(
    distance: Float[Array, "*s"], similar: Bool[Array, "*s"], num_bits: int
) -> Float[Array, "*s"]:
    """Returns the loss of two photos in the reward of a method that assigns each photo one centre.

    The loss of such a method bounds the number of bits in which a code differs from its centre. Two
    photos with the same centre have codes at distance 0 where it is reached, and two photos with
    unrelated centres codes at distance q / 2 or more. The loss is therefore the number of bits that
    the pair is away from that, as a fraction of q: d / q for similar pairs, and (q / 2 - d) / q, if
    positive, for dissimilar pairs.
    """
    fraction = distance / num_bits
    return jnp.where(similar, fraction, jnp.maximum(0.5 - fraction, 0.0))
