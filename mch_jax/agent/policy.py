"""The agent: state, reward and loss of the policy that keeps or discards a region's code.

Action KEEP is 1, as in Eq. 6 and the paper's text; Eq. 4 prints the reverse.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, UInt32

from mch_jax import codes, pairs
from mch_jax.codes import Encoding, sign

DISCARD, KEEP = 0, 1


def state(image: Encoding, region: Encoding) -> Float[Array, "b s"]:
    """Returns h = [f(x); f(x*); b; b*] (Eq. 3), 2 d + 2 q wide."""
    signs = [sign(e.logits).astype(jnp.float32) for e in (image, region)]
    return jnp.concatenate([image.features, region.features, *signs], -1)


def reward_histogram(
    packed: UInt32[Array, "b t w"],
    region_packed: UInt32[Array, "b w"],
    labels: UInt32[Array, "b lw"],
    train_packed: UInt32[Array | np.ndarray, "w n"],
    train_labels: UInt32[Array | np.ndarray, "lw n"],
    count: Int32[Array | np.ndarray, " n"],
    num_bits: int,
) -> Int32[Array, "b 2 distances"]:
    """Returns by how many pairs each distance is left when a region's code is kept.

    For each image, +1 where d_ij was and -1 where min(d_ij, d*_ij) is (Eq. 5), over all training
    images j, dissimilar pairs in row 0 and similar ones in row 1. The sum over j in Eq. 6 is this
    table times the loss at each distance, so the reward is exact in integers and the same however
    the training set is shared among devices; memory is proportional to n.

    Args:
      packed: codes that the image has already, at least its own.
      region_packed: code of one region of each image.
      labels: packed labels of the images.
      train_packed: packed codes of the training images, which come last.
      train_labels: packed labels of the training images.
      count: how often each training image counts; 0 for padding.
      num_bits: code length q.
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


def reward(
    histogram: Int[Array, "b 2 distances"],
    loss_table: Float[Array | np.ndarray, "2 distances"],
    num_pairs: int,
) -> Float[Array, " b"]:
    """Returns the reward of keeping: how much the mean base loss of an image's pairs falls (Eq. 6).

    Args:
      histogram: of `reward_histogram`.
      loss_table: base loss at each distance, pair weights included, of dissimilar and of similar
        pairs.
      num_pairs: training images that were compared with; the paper's sum is the mean times this.
    """
    # In full precision: counts need more than the 10 bits that a GPU's default leaves of them.
    total = jnp.einsum(
        "bsd,sd->b",
        histogram.astype(jnp.float32),
        loss_table,
        precision=jax.lax.Precision.HIGHEST,
    )
    return total / num_pairs


def reinforce_loss(
    logits: Float[Array, "b 2"], action: Int[Array, " b"], advantage: Float[Array, " b"]
) -> Float[Array, " b"]:
    """Returns -log pi(a | h) A for each image, whose gradient is REINFORCE's (Eq. 7).

    Args:
      logits: of DISCARD and KEEP.
      action: the sampled action.
      advantage: reward of the action, less a baseline if there is one; no gradient flows into it.
    """
    log_prob = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_prob, action[:, None], 1)[:, 0]
    return -chosen * jax.lax.stop_gradient(advantage)


def expected_loss(logits: Float[Array, "b 2"], reward: Float[Array, " b"]) -> Float[Array, " b"]:
    """Returns minus the expected reward over both actions.

    Its gradient is the mean of REINFORCE's over the sampled action: discarding is worth 0, so
    nothing needs to be sampled.
    """
    return -jax.nn.softmax(logits)[:, KEEP] * jax.lax.stop_gradient(reward)


def entropy(logits: Float[Array, "b 2"]) -> Float[Array, " b"]:
    """Returns the entropy of the policy in nats."""
    log_prob = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_prob) * log_prob, -1)
