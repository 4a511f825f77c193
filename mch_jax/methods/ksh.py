"""KSH: "Supervised Hashing with Kernels", Liu et al., CVPR 2012.

Codes are sign((k(f) - mean) A), where k(f) are radial basis functions around m anchors. A minimises

    |(1 / q) B B^T - S|_F^2,    S_ij in {-1, +1}

over a labelled sample, one bit after the other. With y_k the bit and R_k the residual, R_1 = q S
and R_{k+1} = R_k - y_k y_k^T, each bit maximises y_k^T R_k y_k. Table 1 of MCH is the same loss for
one pair, ((q - 2 d) / q - (2 s - 1))^2. No network is trained; `fit` returns the hash layer.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, ScalarLike, UInt32

from mch_jax import models, pairs
from mch_jax.codes import AnyArray
from mch_jax.methods.base import Objective, no_penalty


def ksh(num_bits: int) -> Objective:
    """Returns the losses of Table 1, for the reward."""

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        del progress
        return jnp.tanh(logits)

    def pair_loss(distance: Float[Array, "*s"], similar: Bool[Array, "*s"]) -> Float[Array, "*s"]:
        return ((num_bits - 2.0 * distance) / num_bits - jnp.where(similar, 1.0, -1.0)) ** 2

    return Objective(relax, pair_loss, pairs.unit_weight, no_penalty)


def fit(
    features: Float[AnyArray, "n d"],
    labels: UInt32[AnyArray, "n lw"],
    num_bits: int,
    key: Key[Array, ""],
    *,
    num_anchors: int = 300,
    num_labelled: int = 2000,
) -> dict[str, Float[Array, "..."]]:
    """Returns the parameters of `models.KernelHead`.

    Args:
      features: Features of the training set.
      labels: Packed labels of the same images.
      num_bits: Code length q.
      key: Random key of the anchors and of the labelled sample.
      num_anchors: Number m of anchors, drawn from the training set; at most n.
      num_labelled: Number of images in the labelled sample; at most n.

    Returns:
      `anchors` [m d], `scale` (mean squared distance to the anchors), `mean` [m] (mean of the
      kernel over the training set), and `projection` A [m q].

    Raises:
      ValueError: There are more anchors than images.
    """
    features, labels, size = jnp.asarray(features), jnp.asarray(labels), len(features)
    if not 1 <= num_anchors <= size:
        raise ValueError(
            f"num_anchors is {num_anchors}, expected 1 to {size}, the number of training photos"
        )
    anchors_key, labelled_key = jax.random.split(key)
    chosen = jax.random.choice(anchors_key, size, (num_anchors,), replace=False)
    rows = jax.random.choice(labelled_key, size, (min(num_labelled, size),), replace=False)
    anchors = features[chosen]
    distance = models.squared_distance(features, anchors)
    scale = jnp.mean(distance)
    kernel = jnp.exp(-distance / (2 * scale))
    mean = jnp.mean(kernel, axis=0)
    projection = _projection(
        np.asarray(kernel[rows] - mean[None], np.float64), np.asarray(labels[rows]), num_bits
    )
    return {
        "anchors": anchors,
        "scale": scale,
        "mean": mean,
        "projection": jnp.asarray(projection, jnp.float32),
    }


def _projection(
    kernel: Float[np.ndarray, "l m"], labels: UInt32[np.ndarray, "l lw"], num_bits: int
) -> Float[np.ndarray, "m q"]:
    """Returns A, one column after the other."""
    target = _target(labels)
    gram = kernel.T @ kernel
    gram += 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))  # anchors may coincide
    # Columns not yet chosen are zero, so that they leave the residual as it is.
    codes = np.zeros((len(kernel), num_bits))
    columns = []

    def residual(x: Float[np.ndarray, "l k"]) -> Float[np.ndarray, "l k"]:
        return num_bits * target(x) - _times(codes, _times(codes.T, x))

    for bit in range(num_bits):
        spectral = _spectral(kernel, residual, gram)
        choices = np.stack([spectral, _smoothed(kernel, residual, spectral)], axis=1)
        signs = np.where(kernel @ choices >= 0, 1.0, -1.0)
        # The smooth surrogate's vector is used only if its bits are better.
        gains = np.sum(signs * residual(signs), axis=0)
        best = int(gains[1] > gains[0])
        codes[:, bit] = signs[:, best]
        columns.append(choices[:, best])
    return np.stack(columns, axis=1)


def _target(labels: UInt32[np.ndarray, "l lw"]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function x -> S x, computed over distinct label sets, far fewer than images."""
    distinct, kind = np.unique(labels, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    order = np.argsort(kind, kind="stable")
    starts = np.searchsorted(kind[order], np.arange(len(distinct)))
    similar = (distinct[:, None, :] & distinct[None, :, :]).any(axis=-1)
    table = np.where(similar, 1.0, -1.0)
    unlabelled = ~labels.any(axis=1, keepdims=True)  # similar to no image, but S_ii is 1

    def product(x: Float[np.ndarray, "l k"]) -> Float[np.ndarray, "l k"]:
        sums = np.add.reduceat(x[order], starts, axis=0)
        return _times(table, sums)[kind] + np.where(unlabelled, 2.0 * x, 0.0)

    return product


def _times(a: Float[np.ndarray, "i j"], b: Float[np.ndarray, "j k"]) -> Float[np.ndarray, "i k"]:
    """Returns the product a b, without BLAS where b has one or two columns.

    Each bit takes about a thousand such products. They are too short for BLAS's threads, which on a
    busy machine wait for each other a hundred times longer than they compute.
    """
    return a @ b if b.shape[1] > 2 else np.einsum("ij,jk->ik", a, b)


def _spectral(
    kernel: Float[np.ndarray, "l m"],
    residual: Callable[[np.ndarray], np.ndarray],
    gram: Float[np.ndarray, "m m"],
) -> Float[np.ndarray, " m"]:
    """Returns the maximiser of (K a)^T R (K a) with |K a|^2 = l, a generalised eigenvector."""
    import scipy.linalg  # takes a quarter of a second, which encoding one photo does not need

    top = len(gram) - 1
    _, vectors = scipy.linalg.eigh(kernel.T @ residual(kernel), gram, subset_by_index=(top, top))
    vector = vectors[:, 0]
    return vector * np.sqrt(len(kernel)) / np.linalg.norm(kernel @ vector)


def _smoothed(
    kernel: Float[np.ndarray, "l m"],
    residual: Callable[[np.ndarray], np.ndarray],
    start: Float[np.ndarray, " m"],
    *,
    max_steps: int = 500,
    tolerance: float = 1e-4,
) -> Float[np.ndarray, " m"]:
    """Returns a minimiser of -y^T R y with y = 2 sigmoid(K a) - 1, by Nesterov's method.

    The step size is halved until the quadratic bound holds. Descent ends when the value changes by
    less than the fraction `tolerance`.
    """

    def value_and_slope(a: Float[np.ndarray, " m"]) -> tuple[float, Float[np.ndarray, " m"]]:
        y = np.tanh(0.5 * _times(kernel, a[:, None]))  # = 2 sigmoid - 1
        pull = residual(y)
        slope = -_times(kernel.T, pull * (1.0 - y**2))
        return -float(np.sum(y * pull)), slope[:, 0]

    current = previous = start
    value, slope = value_and_slope(start)
    bound = max(float(np.linalg.norm(slope)), 1e-12)  # 1 / step
    momentum = 1.0
    for _ in range(max_steps):
        next_momentum = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        ahead = current + (momentum - 1.0) / next_momentum * (current - previous)
        ahead_value, ahead_slope = value_and_slope(ahead)
        square = float(ahead_slope @ ahead_slope)
        candidate_value = value_and_slope(ahead - ahead_slope / bound)[0]
        while candidate_value > ahead_value - 0.5 * square / bound and bound < 1e300:
            bound *= 2.0
            candidate_value = value_and_slope(ahead - ahead_slope / bound)[0]
        previous, current = current, ahead - ahead_slope / bound
        change, value = abs(value - candidate_value), candidate_value
        momentum = next_momentum
        if change <= tolerance * abs(value):
            break
    return current
