"""MMHH: "Maximum-Margin Hamming Hashing", Kang et al., ICCV 2019.

Table 1 of MCH, the negative logarithm of the max-margin t-distribution:

    similar     log(1 + max(0, d - H))
    dissimilar  log(1 + 1 / max(H, d))
    penalty     |b - u|^2 / q

with d = (q / 2) (1 - cos(u_i, u_j)); u, in the penalty too, is the vector at norm sqrt(q). H is the
Hamming radius. Within it the loss is flat: such a pair has no gradient, and a dissimilar one costs
at most log(1 + 1 / H), 0.405 for H = 2. One code for all images is therefore nearly free: with both
kinds of pairs weighing the same it beats codes at distance q / 2, and photos of several labels end
there, at chance. The two break even where a dissimilar pair weighs

    log(1 + q / 2 - H) / (log(1 + 1 / H) - log(1 + 2 / q)),

6.8, 7.9, 9.2 times more at 16, 32, 64 bits; here it weighs `dissimilar_weight` times more. The
authors' program optimises another loss; this is the printed one, without a memory of past codes.
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
      num_bits: code length q.
      margin: the radius H in bits, above 0; at 0 a dissimilar collision would cost infinity.
      dissimilar_weight: weight of dissimilar pairs, beside the balance of the two kinds; 1 is the
        printed loss.
      penalty_weight: weight of the quantization loss.
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
