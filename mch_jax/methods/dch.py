"""DCH: "Deep Cauchy Hashing for Hamming Space Retrieval", Cao et al., CVPR 2018.

Table 1 of MCH with s log(d / gamma) + log(1 + gamma / d) split by kind of pair:

    similar     log(1 + d / gamma)
    dissimilar  log(1 + gamma / d)
    penalty     log(1 + (q / 2) (1 - cos(b, u)) / gamma)

where d = (q / 2) (1 - cos(u_i, u_j)). As printed both are undefined or infinite at d = 0, where
binary codes often are: here d is never less than `floor` q, in training and in the reward, the
common cosine clip at 0.99. The floor sets what a collision of dissimilar images costs: at 32 bits
4.8, and 1.6 at half a q. Below it the gradient is zero.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from mch_jax import pairs
from mch_jax.methods.base import Objective, to_sphere


def dch(
    num_bits: int, *, gamma: float = 20.0, penalty_weight: float = 0.1, floor: float = 0.005
) -> Objective:
    """Returns Deep Cauchy Hashing.

    Args:
      num_bits: code length q.
      gamma: scale of the Cauchy distribution in bits; the smaller, the tighter the Hamming ball.
      penalty_weight: weight of the quantization loss.
      floor: least distance, as a fraction of `num_bits`.
    """

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        # The paper's hash layer ends in tanh: it keeps a few large logits from ruling the cosine.
        del progress
        return to_sphere(jnp.tanh(logits))

    def pair_loss(distance: Float[Array, "*s"], similar: Bool[Array, "*s"]) -> Float[Array, "*s"]:
        distance = jnp.maximum(distance, floor * num_bits)
        return jnp.log1p(jnp.where(similar, distance / gamma, gamma / distance))

    def penalty(codes: Float[Array, "b q"], relaxed: Float[Array, "b q"]) -> Float[Array, " b"]:
        distance = 0.5 * (num_bits - jnp.sum(codes * relaxed, axis=-1))
        return penalty_weight * jnp.log1p(jnp.maximum(distance, 0.0) / gamma)

    return Objective(relax, pair_loss, pairs.balanced_weight, penalty)
