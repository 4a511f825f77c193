"""DPHN: "Deep Policy Hashing Network with Listwise Supervision", Wang et al., arXiv 1904.01728.

The bits of a photo are actions: bit k of its code is 1 with probability sigmoid(logit_k), and -1
otherwise. Codes are drawn for each photo of a batch as a query, and the reward R of a code b is the
average precision of the list of all training photos, ordered by the distance of their codes from
b. Those codes come from a second network that changes slowly: it is a copy of the first, made once
a turn. The policy gradient of the mean reward is that of

    -1/m sum_s (R(b_s) - baseline_s) sum_k log P(b_sk)

over m codes of the photo, as in REINFORCE. The paper's text was not at hand, only its abstract. The
baseline is therefore a choice, the mean reward of the photo's other m - 1 codes, which leaves the
gradient unbiased, and so is the weight of the codes' entropy. Where codes are at equal distance,
the average precision is the tie-aware one of `methods.talr`. The paper's recipe of the agent needs
a loss of two photos; as the measure is the same, it is that of `methods.talr`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from mch_jax.codes import sign
from mch_jax.methods import talr
from mch_jax.methods.base import Alternating, Objective

_LEAST = 1e-6  # least probability of a bit in the logarithm


def dphn(num_bits: int) -> Objective:
    """Returns the losses of TALR, with the mean of the drawn bits as the relaxed code."""

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        del progress
        return jnp.tanh(logits / 2)  # 2 sigmoid(logits) - 1

    return talr.talr(num_bits)._replace(relax=relax, batch_loss=None)


def alternating(*, epochs: int = 1, draws: int = 4, entropy: float = 0.01) -> Alternating:
    """Returns DPHN's training.

    Args:
      epochs: Number of epochs between two copies of the network.
      draws: Number of codes drawn for a photo in each step, at least 2.
      entropy: Weight of the mean entropy of a photo's code in nats, which is maximised. Without it
        the bits become certain within a few hundred steps, and nothing is learned any more.

    Raises:
      ValueError: `draws` is below 2, so that there is no baseline.
    """
    if draws < 2:
        raise ValueError(f"dphn: draws is {draws}, expected at least 2 for a baseline")

    def loss(relaxed, rows, similar, codes, target, keys):
        del target
        probability = jnp.clip((1 + relaxed) / 2, _LEAST, 1 - _LEAST)
        drawn = jax.vmap(lambda k, p: jax.random.bernoulli(k, p[None], (draws, *p.shape)))(
            keys, jax.lax.stop_gradient(probability)
        )
        reward = rewards(jnp.where(drawn, 1.0, -1.0), rows, similar, codes)
        uncertainty = jax.scipy.special.entr(probability) + jax.scipy.special.entr(1 - probability)
        return policy_loss(probability, drawn, reward) - entropy * jnp.mean(uncertainty.sum(-1))

    def update(codes, relaxed, rows, similar, target):
        del similar, target
        return codes.at[rows].set(sign(relaxed))

    return Alternating(None, epochs, lambda similar: jnp.zeros(()), loss, update)


def rewards(
    drawn: Float[Array, "b m q"],
    rows: Int[Array, " b"],
    similar: Bool[Array, "b n"],
    codes: Float[Array, "n q"],
) -> Float[Array, "b m"]:
    """Returns the tie-aware average precision of the list of all photos for each drawn code.

    The photo itself is not in the list.

    Args:
      drawn: Codes in {-1, +1} of the photos of a batch, m of each.
      rows: Row of each of these photos in the list.
      similar: Which photos of the list are similar to each of them.
      codes: Codes in {-1, +1} of the photos in the list.
    """
    num_bits = codes.shape[1]
    distance = jnp.round((num_bits - drawn @ codes.T) / 2)
    others = jnp.arange(len(codes))[None] != rows[:, None]
    bins = jnp.arange(num_bits + 1, dtype=distance.dtype)[:, None]

    def one(photo):
        distance, similar, others = photo
        at = distance[:, None] == bins[None]
        every = jnp.sum(at & others[None, None], -1, dtype=jnp.float32)
        relevant = jnp.sum(at & (similar & others)[None, None], -1, dtype=jnp.float32)
        return talr.soft_average_precision(relevant, every)

    return jax.lax.map(one, (distance, similar, others))


def policy_loss(
    probability: Float[Array, "b q"], drawn: Bool[Array, "b m q"], reward: Float[Array, "b m"]
) -> Float[Array, ""]:
    """Returns the surrogate whose gradient is minus the policy gradient of the mean reward.

    Args:
      probability: Probability of each bit to be 1.
      drawn: Bits drawn, m times for each photo.
      reward: Reward of each drawn code.
    """
    draws = reward.shape[1]
    advantage = (draws * reward - reward.sum(1, keepdims=True)) / (draws - 1)
    likely = jnp.where(drawn, probability[:, None], 1 - probability[:, None])
    return -jnp.mean(jax.lax.stop_gradient(advantage) * jnp.log(likely).sum(-1))
