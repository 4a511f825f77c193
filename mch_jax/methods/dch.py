"""DCH: "Deep Cauchy Hashing for Hamming Space Retrieval", Cao et al., CVPR 2018.

The loss is that of Table 1 of MCH. Split by kind of pair, s log(d / gamma) + log(1 + gamma / d) is

    similar     log(1 + d / gamma)
    dissimilar  log(1 + gamma / d)
    penalty     log(1 + (q / 2) (1 - cos(b, u)) / gamma)

where d = (q / 2) (1 - cos(u_i, u_j)). As printed, both are undefined or infinite at d = 0, which is
frequent with binary codes. Here d is clipped to at least `floor` q, in training and in the reward;
the default corresponds to the common clip of the cosine at 0.99. The floor determines the loss of a
collision of dissimilar images: at 32 bits it is 4.84, where a dissimilar pair at distance q / 2 has
0.81. Below the floor the gradient is zero.
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
      num_bits: Code length q.
      gamma: Scale of the Cauchy distribution in bits. A smaller scale gives a tighter Hamming ball.
      penalty_weight: Weight of the quantization loss.
      floor: Smallest distance, as a fraction of `num_bits`.
    """

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        # The paper's hash layer ends in tanh, so that no few large logits dominate the cosine.
        del progress
        return to_sphere(jnp.tanh(logits))

    def pair_loss(distance: Float[Array, "*s"], similar: Bool[Array, "*s"]) -> Float[Array, "*s"]:
        distance = jnp.maximum(distance, floor * num_bits)
        return jnp.log1p(jnp.where(similar, distance / gamma, gamma / distance))

    def penalty(codes: Float[Array, "b q"], relaxed: Float[Array, "b q"]) -> Float[Array, " b"]:
        distance = 0.5 * (num_bits - jnp.sum(codes * relaxed, axis=-1))
        return penalty_weight * jnp.log1p(jnp.maximum(distance, 0.0) / gamma)

    return Objective(relax, pair_loss, pairs.balanced_weight, penalty)
