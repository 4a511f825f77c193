"""MMHH: "Maximum-Margin Hamming Hashing", Kang et al., ICCV 2019.

The loss is that of Table 1 of MCH, the negative logarithm of the max-margin t-distribution:

    similar     log(1 + max(0, d - H))
    dissimilar  log(1 + 1 / max(H, d))
    penalty     |b - u|^2 / q

with d = (q / 2) (1 - cos(u_i, u_j)). Here u, also in the penalty, is the vector scaled to norm
sqrt(q), and H is the Hamming radius. Within the radius the loss is constant, so that a pair there
has no gradient, and a dissimilar pair costs at most log(1 + 1 / H), which is 0.405 for H = 2.
Giving all images the same code is therefore nearly free. If both kinds of pairs have the same total
weight, it has a lower loss than codes at distance q / 2, and training on photos with several labels
ends there, at chance. The two are equal where a dissimilar pair weighs

    log(1 + q / 2 - H) / (log(1 + 1 / H) - log(1 + 2 / q))

times as much, which is 6.8, 7.9 and 9.2 at 16, 32 and 64 bits. Here it weighs `dissimilar_weight`
times as much. The authors' program optimises a different loss; this is the printed one, without a
memory of past codes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from mch_jax import pairs
from mch_jax.methods.base import Objective, to_sphere


def mmhh(
    num_bits: int,
    *,
    margin: float = 2.0,
    dissimilar_weight: float = 10.0,
    penalty_weight: float = 0.1,
) -> Objective:
    """Returns Maximum-Margin Hamming Hashing.

    Args:
      num_bits: Code length q.
      margin: Radius H in bits, above 0. At 0 a collision of dissimilar images would have an
        infinite loss.
      dissimilar_weight: Factor on the weight of dissimilar pairs, beside the balance of the two
        kinds. With 1 this is the printed loss.
      penalty_weight: Weight of the quantization loss.
    """

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        del progress
        return to_sphere(jnp.tanh(logits))

    def pair_loss(distance: Float[Array, "*s"], similar: Bool[Array, "*s"]) -> Float[Array, "*s"]:
        beyond = jnp.maximum(distance - margin, 0.0)
        return jnp.log1p(jnp.where(similar, beyond, 1.0 / jnp.maximum(distance, margin)))

    def pair_weight(similar: Bool[Array, "*s"], similar_fraction: ScalarLike) -> Float[Array, "*s"]:
        weight = pairs.balanced_weight(similar, similar_fraction)
        return weight * jnp.where(similar, 1.0, dissimilar_weight)

    def penalty(codes: Float[Array, "b q"], relaxed: Float[Array, "b q"]) -> Float[Array, " b"]:
        return penalty_weight * jnp.mean((codes - relaxed) ** 2, axis=-1)

    return Objective(relax, pair_loss, pair_weight, penalty)
