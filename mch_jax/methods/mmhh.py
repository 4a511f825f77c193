"""MMHH: "Maximum-Margin Hamming Hashing", Kang et al., ICCV 2019.

Table 1 of MCH, the negative logarithm of the max-margin t-distribution:

    similar     log(1 + max(0, d - H))
    dissimilar  log(1 + 1 / max(H, d))
    penalty     |b - u|^2 / q

with d = (q / 2) (1 - cos(u_i, u_j)), both u in the cosine and u in the penalty being the vector at
norm sqrt(q). H is the Hamming radius. Within it the loss is flat: such a pair has no gradient, and a
dissimilar pair costs at most log(1 + 1 / H), 0.405 for H = 2. The authors' program optimises another
loss; this is the printed one, without the memory of past codes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from mch_jax import pairs
from mch_jax.objective import Objective, to_sphere


def mmhh(num_bits: int, *, margin: float = 2.0, penalty_weight: float = 0.1) -> Objective:
    """Returns Maximum-Margin Hamming Hashing.

    Args:
      num_bits: code length q.
      margin: the radius H in bits, above 0; at 0 a dissimilar collision would cost infinity.
      penalty_weight: weight of the quantization loss.
    """

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        del progress
        return to_sphere(jnp.tanh(logits))

    def pair_loss(distance: Float[Array, "*s"], similar: Bool[Array, "*s"]) -> Float[Array, "*s"]:
        beyond = jnp.maximum(distance - margin, 0.0)
        return jnp.log1p(jnp.where(similar, beyond, 1.0 / jnp.maximum(distance, margin)))

    def penalty(codes: Float[Array, "b q"], relaxed: Float[Array, "b q"]) -> Float[Array, " b"]:
        return penalty_weight * jnp.mean((codes - relaxed) ** 2, axis=-1)

    return Objective(relax, pair_loss, pairs.balanced_weight, penalty)
