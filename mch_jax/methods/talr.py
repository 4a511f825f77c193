"""TALR: "Hashing as Tie-Aware Learning to Rank", He et al., CVPR 2018.

Each photo of a batch is a query for the others. The distances of tanh codes go into a histogram
with q + 1 bins, each to the two bins around it in proportion. With p_d relevant and n_d other
photos in bin d, and P_d and N_d their sums up to bin d, the simplified relaxation of tie-aware
average precision is

    AP = sum_d  p_d (P_{d-1} + P_d + 1) / (P_{d-1} + N_{d-1} + P_d + N_d + 1)  /  sum_d p_d

and the loss is minus its mean over the batch. The cross-fitted recipe's reward
(`agent.evidence.values`) is a derivative of average precision with respect to the same histogram,
plus one of recall, so that base model and agent maximise nearly the same measure.

The paper's recipe of the agent needs a loss of two photos that does not depend on the other codes.
It uses the expected share of wrongly ordered pairs among codes of independent bits, whose distances
have mean q / 2 and standard deviation sqrt(q) / 2. A similar photo at distance d is ranked after
the dissimilar photos that are nearer, a share Phi(z) of them with z = (2 d - q) / sqrt(q), and a
dissimilar photo before a share Phi(-z) of the similar ones.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, ScalarLike

from mch_jax import pairs
from mch_jax.methods.base import Batch, Objective, no_penalty


def talr(num_bits: int) -> Objective:
    """Returns minus the tie-aware average precision of soft histograms of distances."""

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        del progress
        return jnp.tanh(logits)

    def pair_loss(distance: Float[Array, "*s"], similar: Bool[Array, "*s"]) -> Float[Array, "*s"]:
        deviation = (2.0 * distance - num_bits) / jnp.sqrt(num_bits)
        return jax.scipy.stats.norm.cdf(jnp.where(similar, deviation, -deviation))

    def batch_loss(batch: Batch) -> Float[Array, ""]:
        distance = pairs.relaxed_distance(batch.relaxed, batch.relaxed)
        shares_label = batch.targets @ batch.targets.T > 0
        others = ~jnp.eye(len(distance), dtype=bool)
        # [b n distances]: the weight of each photo in each bin of each query's histogram
        bins = jnp.arange(num_bits + 1, dtype=distance.dtype)[None, None]
        weight = jnp.maximum(1.0 - jnp.abs(distance[:, :, None] - bins), 0.0)
        relevant = jnp.sum(jnp.where((shares_label & others)[:, :, None], weight, 0.0), axis=1)
        every = jnp.sum(jnp.where(others[:, :, None], weight, 0.0), axis=1)
        return -jnp.mean(soft_average_precision(relevant, every))

    return Objective(relax, pair_loss, pairs.unit_weight, no_penalty, batch_loss)


def soft_average_precision(
    relevant: Float[Array, "b distances"], every: Float[Array, "b distances"]
) -> Float[Array, " b"]:
    """Returns the simplified tie-aware average precision of each query, 0 if nothing is relevant.

    Args:
      relevant: Histogram of the distances of relevant photos.
      every: Histogram of the distances of all photos.
    """
    found, seen = jnp.cumsum(relevant, axis=1), jnp.cumsum(every, axis=1)
    precision = (2 * found - relevant + 1.0) / (2 * seen - every + 1.0)
    total = jnp.sum(relevant, axis=1)
    return jnp.sum(relevant * precision, axis=1) / jnp.where(total > 0, total, 1.0)
