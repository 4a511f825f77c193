"""LSH: "Similarity Estimation Techniques from Rounding Algorithms", Charikar, STOC 2002.

Bits are the signs of random projections, b = sign(f W) with Gaussian W. Nothing is learned.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32

from mch_jax.codes import AnyArray


def fit(
    features: Float[AnyArray, "n d"],
    labels: UInt32[AnyArray, "n lw"] | None,
    num_bits: int,
    key: Key[Array, ""],
    *,
    center: bool = False,
) -> dict[str, Float[Array, "..."]]:
    """Returns a linear hash layer, `kernel` [d q] and `bias` [q].

    Args:
      features: Features of the training set. Only their width matters, and their mean if `center`
        is set.
      labels: Not used.
      num_bits: Code length q.
      key: Random key of the projections.
      center: Whether the mean of the training set is subtracted first. Features after ReLU are not
        negative, so bits are unbalanced without it. The usual baseline does without.
    """
    del labels
    kernel = jax.random.normal(key, (features.shape[1], num_bits))
    bias = -jnp.mean(jnp.asarray(features), axis=0) @ kernel if center else jnp.zeros(num_bits)
    return {"kernel": kernel, "bias": bias}
