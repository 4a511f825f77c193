"""HyP²: "HyP² Loss: Beyond Hypersphere Metric Space", Xu et al., ACM Multimedia 2022.

Every class k has a proxy p_k, a vector that is learned with the network. With c(a, b) the cosine
and t a threshold, the loss is the sum of three means,

    over photos and their labels            1 - c(u_i, p_k)
    over photos and the other labels        max(0, c(u_i, p_k) - t)
    over dissimilar pairs of photos, each   beta max(0, c(u_i, u_j) - t)
    with more than one label

The third part is a loss of two photos. For similar photos the reward uses the first part, with the
other photo's code in place of the proxy. It is the same function of the distance, as
c = 1 - 2 d / q for codes.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, ScalarLike

from mch_jax import pairs
from mch_jax.methods.base import Batch, Objective, no_penalty, to_sphere


def hyp2(num_bits: int, *, threshold: float = 0.0, beta: float = 0.5) -> Objective:
    """Returns the HyP² loss.

    Args:
      num_bits: Code length q.
      threshold: Cosine t below which a dissimilar pair has no loss. The paper derives it from the
        largest minimum distance that as many codes as there are classes can have. That is q / 2,
        hence t = 0, for up to 2 q classes where q is a power of two.
      beta: Weight of dissimilar pairs of photos.
    """

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        del progress
        return to_sphere(logits)

    def pair_loss(distance: Float[Array, "*s"], similar: Bool[Array, "*s"]) -> Float[Array, "*s"]:
        cosine = 1.0 - 2.0 * distance / num_bits
        return jnp.where(similar, 1.0 - cosine, jnp.maximum(cosine - threshold, 0.0))

    def batch_loss(batch: Batch) -> Float[Array, ""]:
        has_label = batch.targets > 0
        proxies = to_sphere(jnp.asarray(batch.parameters["proxies"]))
        to_proxies = pair_loss(pairs.relaxed_distance(batch.relaxed, proxies), has_label)
        several = jnp.sum(has_label, axis=1) > 1
        shared = batch.targets @ batch.targets.T > 0
        apart = ~shared & several[:, None] & several[None, :]
        to_photos = pair_loss(pairs.relaxed_distance(batch.relaxed, batch.relaxed), shared)
        return (
            _mean(to_proxies, has_label)
            + _mean(to_proxies, ~has_label)
            + beta * _mean(to_photos, apart)
        )

    def parameters(num_classes: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        proxies = rng.normal(0.0, np.sqrt(2 / num_classes), (num_classes, num_bits))
        return {"proxies": proxies.astype(np.float32)}

    return Objective(relax, pair_loss, pairs.unit_weight, no_penalty, batch_loss, parameters)


def _mean(values: Float[Array, "b n"], chosen: Bool[Array, "b n"]) -> Float[Array, ""]:
    """Returns the mean of the chosen values, or 0 if there are none."""
    return jnp.sum(jnp.where(chosen, values, 0.0)) / jnp.maximum(jnp.sum(chosen), 1)
