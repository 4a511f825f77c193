"""OrthoHash: "One Loss for All", Hoe et al., NeurIPS 2021.

Every class k has a centre c_k (`centres`), and centres are nearly orthogonal. For photos with
several labels the loss is a binary cross-entropy for each photo and class,

    has the label       log(1 + exp(-s (cos(u_i, c_k) - m)))
    has it not          log(1 + exp(s cos(u_i, c_k)))

with cos(u_i, c_k) = 1 - 2 d / q for codes at distance d. A pair is thus one of a photo and a class,
and no photo is compared with another. The reward needs a loss of two photos: there the code of the
other photo takes the place of the centre, and being similar that of having the label. It is the
same function of the distance.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from mch_jax import pairs
from mch_jax.methods.base import Batch, Objective, no_penalty, to_sphere
from mch_jax.methods.centres import class_centres


def orthohash(
    num_bits: int, *, scale: float = 8.0, margin: float = 0.2, threshold: float = 0.0
) -> Objective:
    """Returns OrthoHash in its form for photos with several labels.

    Args:
      num_bits: Code length q.
      scale: Factor s on the cosine.
      margin: Margin m by which the cosine of a pair with the label has to be larger.
      threshold: Subtracted from every cosine; 0 in the paper.
    """

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        del progress
        return to_sphere(jnp.tanh(logits))

    def pair_loss(distance: Float[Array, "*s"], similar: Bool[Array, "*s"]) -> Float[Array, "*s"]:
        cosine = 1.0 - 2.0 * distance / num_bits - threshold
        return jax.nn.softplus(jnp.where(similar, scale * (margin - cosine), scale * cosine))

    def batch_loss(batch: Batch) -> Float[Array, ""]:
        centres = jnp.asarray(class_centres(batch.targets.shape[1], num_bits))
        return jnp.mean(
            pair_loss(pairs.relaxed_distance(batch.relaxed, centres), batch.targets > 0)
        )

    return Objective(relax, pair_loss, pairs.unit_weight, no_penalty, batch_loss)
