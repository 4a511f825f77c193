"""HashNet: "HashNet: Deep Learning to Hash by Continuation", Cao et al., ICCV 2017.

The loss is that of Table 1 of MCH, the weighted maximum likelihood of pairs:

    log(1 + exp(alpha <u_i, u_j>)) - s alpha <u_i, u_j>,    <u_i, u_j> = q - 2 d

Codes are relaxed by tanh(beta u), where beta grows during training. beta = sqrt(1 + 50 progress)
equals the authors' (1 + 0.005 t)^0.5 over their 10,000 iterations. There is no quantization loss.
With alpha = 10 / q the exponent of codes stays within [-10, 10].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from mch_jax import pairs
from mch_jax.methods.base import Objective, no_penalty


def hashnet(num_bits: int, *, alpha: float | None = None, continuation: float = 50.0) -> Objective:
    """Returns HashNet.

    Args:
      num_bits: Code length q.
      alpha: Slope of the sigmoid. Defaults to 10 / q.
      continuation: Constant c in beta = sqrt(1 + c progress). With 0, codes are relaxed by tanh(u)
        throughout.
    """
    slope = 10.0 / num_bits if alpha is None else alpha

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        return jnp.tanh(jnp.sqrt(1.0 + continuation * progress) * logits)

    def pair_loss(distance: Float[Array, "*s"], similar: Bool[Array, "*s"]) -> Float[Array, "*s"]:
        # log(1 + e^x) - x = log(1 + e^-x), where a similar pair's large terms have cancelled.
        exponent = slope * (num_bits - 2.0 * distance)
        return jax.nn.softplus(jnp.where(similar, -exponent, exponent))

    return Objective(relax, pair_loss, pairs.balanced_weight, no_penalty)
