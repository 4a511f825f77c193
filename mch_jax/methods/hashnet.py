"""HashNet: "HashNet: Deep Learning to Hash by Continuation", Cao et al., ICCV 2017.

Table 1 of MCH, the weighted maximum likelihood of pairs:

    log(1 + exp(alpha <u_i, u_j>)) - s alpha <u_i, u_j>,    <u_i, u_j> = q - 2 d

Codes are relaxed by tanh(beta u), with beta growing during training: sqrt(1 + 50 progress) is the
authors' (1 + 0.005 t)^0.5 over their 10,000 iterations. There is no quantization loss. With
alpha = 10 / q the exponent stays within [-10, 10] on codes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from mch_jax import pairs
from mch_jax.methods.base import Objective, no_penalty


def hashnet(num_bits: int, *, alpha: float | None = None, continuation: float = 50.0) -> Objective:
    """Returns HashNet.

    Args:
      num_bits: code length q.
      alpha: slope of the sigmoid; 10 / q by default.
      continuation: c in beta = sqrt(1 + c progress); 0 keeps tanh(u) throughout.
    """
    slope = 10.0 / num_bits if alpha is None else alpha

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        return jnp.tanh(jnp.sqrt(1.0 + continuation * progress) * logits)

    def pair_loss(distance: Float[Array, "*s"], similar: Bool[Array, "*s"]) -> Float[Array, "*s"]:
        # log(1 + e^x) - x = log(1 + e^-x): the large terms of a similar pair cancel beforehand.
        exponent = slope * (num_bits - 2.0 * distance)
        return jax.nn.softplus(jnp.where(similar, -exponent, exponent))

    return Objective(relax, pair_loss, pairs.balanced_weight, no_penalty)
