"""The reward of keeping a region's code: how much the base loss falls (Eqs. 5 and 6).

Between binary codes the loss takes q + 1 values for each kind of pair. The reward is therefore a
table of losses times a histogram of distances, which is exact in integers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, UInt32

from mch_jax import codes, pairs


def reward_histogram(
    packed: UInt32[Array, "b t w"],
    region_packed: UInt32[Array, "b w"],
    labels: UInt32[Array, "b lw"],
    train_packed: UInt32[Array | np.ndarray, "w n"],
    train_labels: UInt32[Array | np.ndarray, "lw n"],
    count: Int32[Array | np.ndarray, " n"],
    num_bits: int,
) -> Int32[Array, "b 2 distances"]:
    """Returns how many pairs leave each distance when a region's code is kept.

    Keeping a code changes the distance from an image i to a training image j from d_ij, the
    smallest over the codes that the image has, to min(d_ij, d*_ij), where d*_ij is the distance of
    the region's code (Eq. 5). Each pair counts +1 at its old distance and -1 at its new one. The
    sum over j in Eq. 6 is this histogram times the loss at each distance. It is the same however
    the training set is shared among devices, and takes memory proportional to n.

    Args:
      packed: Codes that each image has already, at least its own.
      region_packed: Code of one region of each image.
      labels: Packed labels of the images.
      train_packed: Packed codes of the training images, items last.
      train_labels: Packed labels of the training images, items last.
      count: Weight of each training image; 0 for padding.
      num_bits: Code length q.

    Returns:
      Counts of dissimilar pairs in row 0 and of similar pairs in row 1.
    """

    def one(image):
        own, region, label = image
        to_all = functools.partial(codes.distance_to, packed=train_packed)
        distance = functools.reduce(jnp.minimum, [to_all(code) for code in own])
        nearer = jnp.minimum(distance, to_all(region))
        first_bin = jnp.where(pairs.shares_label(label, train_labels), num_bits + 1, 0)
        bins = [first_bin + x for x in (distance, nearer)]
        own_counts, counts = (codes.weighted_counts(x, count, 2 * (num_bits + 1)) for x in bins)
        return own_counts - counts

    bins = jax.lax.map(one, (packed, region_packed, labels))
    return bins.reshape(-1, 2, num_bits + 1)


def rewards(
    histogram: Int[Array, "b 2 distances"],
    loss_table: Float[Array | np.ndarray, "2 distances"],
    num_pairs: int,
) -> Float[Array, " b"]:
    """Returns by how much keeping a region lowers the mean base loss of its image's pairs (Eq. 6).

    Args:
      histogram: Result of `reward_histogram`.
      loss_table: Base loss at each distance, pair weights included, of dissimilar pairs (row 0) and
        of similar pairs (row 1).
      num_pairs: Number of training images. The paper's sum over them is the mean times this.
    """
    # Counts need more than the 10 bits of precision that a GPU's default leaves of them.
    total = jnp.einsum(
        "bsd,sd->b",
        histogram.astype(jnp.float32),
        loss_table,
        precision=jax.lax.Precision.HIGHEST,
    )
    return total / num_pairs
