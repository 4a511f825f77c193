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
    width = features.shape[1]
    if num_bits > width:
        raise ValueError(f"num_bits: got {num_bits}, expected at most the features' width, {width}")
    centred = np.array(features, np.float64)
    mean = centred.mean(axis=0, keepdims=True)
    centred -= mean
    components = _components(centred, num_bits)
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


def _components(centred: Float[np.ndarray, "n d"], count: int) -> Float[np.ndarray, "d k"]:
    """Returns the first principal components, orthonormal columns, from the smaller Gram matrix.

    X X^T has the eigenvalues of X^T X, and X^T times its eigenvectors are the latter's: with fewer
    images than features that is the cheaper way. It does not give more components than images.
    """
    import scipy.linalg  # a quarter of a second that encoding one photo does not need

    size, width = centred.shape
    if width <= size or size <= count:
        _, vectors = scipy.linalg.eigh(
            centred.T @ centred, subset_by_index=(width - count, width - 1)
        )
        return vectors
    _, vectors = scipy.linalg.eigh(centred @ centred.T, subset_by_index=(size - count, size - 1))
    # QR scales the columns, and makes up for those of no variance.
    return scipy.linalg.qr(centred.T @ vectors, mode="economic")[0]


def _nearest_rotation(matrix: Float[np.ndarray, "q q"]) -> Float[np.ndarray, "q q"]:
    """Returns the orthogonal matrix R that maximises tr(R^T matrix)."""
    import scipy.linalg

    left, _, right = scipy.linalg.svd(matrix)
    return left @ right
