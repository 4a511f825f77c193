"""LSH: "Similarity Estimation Techniques from Rounding Algorithms", Charikar, STOC 2002.

Bits are signs of random projections: b = sign(f W), W Gaussian. Nothing is learned.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key


def fit(
    features: Float[Array | np.ndarray, "n d"],
    num_bits: int,
    key: Key[Array, ""],
    *,
    center: bool = False,
) -> dict[str, Float[Array, "..."]]:
    """Returns a linear hash layer, `kernel` [d q] and `bias` [q].

    Args:
      features: of the training set; they only give the width, and the mean.
      num_bits: code length q.
      key: of the draw.
      center: subtracts the training set's mean. Features after ReLU all lie on one side of zero,
        so that bits are unbalanced without; the usual baseline does without.
    """
    kernel = jax.random.normal(key, (features.shape[1], num_bits))
    bias = -jnp.mean(jnp.asarray(features), axis=0) @ kernel if center else jnp.zeros(num_bits)
    return {"kernel": kernel, "bias": bias}
