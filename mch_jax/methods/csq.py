"""CSQ: "Central Similarity Quantization", Yuan et al., CVPR 2020.

Each class has a centre (`centres`), a row of a Hadamard matrix. The centre t_i of a photo with
several labels has in every bit the sign of the majority of its labels' centres. The loss is a
binary cross-entropy in every bit, with u = tanh(logits),

    mean over i, k of  -log((1 + t_ik u_ik) / 2)

and the penalty is the mean of (|u_ik| - 1)^2. There is no loss of two photos. The reward uses that
of `centres.photo_pair_loss`.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike

from mch_jax import pairs
from mch_jax.methods.base import Batch, Objective
from mch_jax.methods.centres import class_centres, majority, photo_pair_loss


def csq(num_bits: int, *, penalty_weight: float = 1e-4) -> Objective:
    """Returns Central Similarity Quantization.

    Args:
      num_bits: Code length q.
      penalty_weight: Weight of the quantization loss.
    """

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        del progress
        return jnp.tanh(logits)

    def penalty(codes: Float[Array, "b q"], relaxed: Float[Array, "b q"]) -> Float[Array, " b"]:
        del codes
        return penalty_weight * jnp.mean((jnp.abs(relaxed) - 1.0) ** 2, axis=-1)

    def batch_loss(batch: Batch) -> Float[Array, ""]:
        centre = majority(batch.targets, class_centres(batch.targets.shape[1], num_bits))
        # (1 + t tanh(x)) / 2 is the sigmoid of 2 t x, whose logarithm is finite.
        return jnp.mean(jax.nn.softplus(-2.0 * centre * batch.logits))

    pair_loss = functools.partial(photo_pair_loss, num_bits=num_bits)
    return Objective(relax, pair_loss, pairs.balanced_weight, penalty, batch_loss)
