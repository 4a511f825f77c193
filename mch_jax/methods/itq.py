"""ITQ: "Iterative Quantization", Gong and Lazebnik, CVPR 2011.

Features are centred and projected onto their first q principal components, V. A rotation R then
minimises |B - V R|_F^2 with B = sign(V R) in alternation: B with R held, then R with B held, which
is the orthogonal Procrustes problem. Labels are not used.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from mch_jax.codes import AnyArray


def fit(
    features: Float[AnyArray, "n d"],
    labels: UInt32[AnyArray, "n lw"] | None,
    num_bits: int,
    key: Key[Array, ""],
    *,
    num_steps: int = 50,
) -> dict[str, Float[Array, "..."]]:
    """Returns a linear hash layer, `kernel` [d q] and `bias` [q].

    Args:
      features: Features of the training set.
      labels: Not used.
      num_bits: Code length q, at most d.
      key: Random key of the first rotation.
      num_steps: Number of alternations.

    Raises:
      ValueError: Codes are longer than features are wide.
    """
    del labels
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
    """Returns the first principal components as orthonormal columns.

    They come from the smaller of the two Gram matrices. X X^T has the eigenvalues of X^T X, and X^T
    maps its eigenvectors to those of X^T X, which is cheaper with fewer images than features. That
    way there are at most as many components as images.
    """
    import scipy.linalg  # takes a quarter of a second, which encoding one photo does not need

    size, width = centred.shape
    if width <= size or size <= count:
        _, vectors = scipy.linalg.eigh(
            centred.T @ centred, subset_by_index=(width - count, width - 1)
        )
        return vectors
    _, vectors = scipy.linalg.eigh(centred @ centred.T, subset_by_index=(size - count, size - 1))
    # QR normalises the columns and replaces those without variance.
    columns: Any = scipy.linalg.qr(centred.T @ vectors, mode="economic")
    return columns[0]


def _nearest_rotation(matrix: Float[np.ndarray, "q q"]) -> Float[np.ndarray, "q q"]:
    """Returns the orthogonal matrix R that maximises tr(R^T matrix)."""
    import scipy.linalg

    left, _, right = scipy.linalg.svd(matrix)
    return left @ right
