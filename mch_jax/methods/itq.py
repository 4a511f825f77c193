"""ITQ: "Iterative Quantization", Gong and Lazebnik, CVPR 2011.

Features are centred and projected on their first q principal components, V. A rotation R then
minimises |B - V R|_F^2, B = sign(V R), by turns: B for R held; R for B held, the orthogonal
Procrustes problem. No labels are used.
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
    num_steps: int = 50,
) -> dict[str, Float[Array, "..."]]:
    """Returns a linear hash layer, `kernel` [d q] and `bias` [q].

    Args:
      features: of the training set.
      num_bits: code length q, at most d.
      key: of the first rotation.
      num_steps: turns of the two steps.

    Raises:
      ValueError: if codes are longer than features are wide.
    """
    import scipy.linalg  # a quarter of a second that encoding one photo does not need

    width = features.shape[1]
    if num_bits > width:
        raise ValueError(f"num_bits: got {num_bits}, expected at most the features' width, {width}")
    centred = np.array(features, np.float64)
    mean = centred.mean(axis=0, keepdims=True)
    centred -= mean
    _, components = scipy.linalg.eigh(
        centred.T @ centred, subset_by_index=(width - num_bits, width - 1)
    )
    projected = centred @ components
    rotation = _nearest_rotation(np.asarray(jax.random.normal(key, (num_bits, num_bits))))
    for _ in range(num_steps):
        codes = np.where(projected @ rotation >= 0, 1.0, -1.0)
        rotation = _nearest_rotation(projected.T @ codes)
    kernel = components @ rotation
    return {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "bias": jnp.asarray(-(mean @ kernel)[0], jnp.float32),
    }


def _nearest_rotation(matrix: Float[np.ndarray, "q q"]) -> Float[np.ndarray, "q q"]:
    """Returns the orthogonal matrix R that maximises tr(R^T matrix)."""
    import scipy.linalg

    left, _, right = scipy.linalg.svd(matrix)
    return left @ right
