"""What makes a base hashing model: four functions, and the loss of a batch made of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, ScalarLike, UInt32

from mch_jax import pairs
from mch_jax.codes import sign


class Objective(NamedTuple):
    """A base hashing model.

    Attributes:
      relax: (logits [b q], progress in [0, 1]) -> relaxed codes [b q]. Their distance is always
        (q - <r_i, r_j>) / 2, so a method on cosines returns vectors of norm sqrt(q).
      pair_loss: (distance in bits, similarity) -> loss, elementwise. It serves training on relaxed
        codes and the agent's reward on binary ones, hence is finite, with a finite gradient, for
        every distance from 0 to q.
      pair_weight: (similarity, similar fraction of the training set) -> w_ij, elementwise.
      penalty: (codes [b q] as floats, relaxed [b q]) -> quantization loss of each image [b].
    """

    relax: Callable[[Array, ScalarLike], Array]
    pair_loss: Callable[[Array, Array], Array]
    pair_weight: Callable[[Array, ScalarLike], Array]
    penalty: Callable[[Array, Array], Array]


def base_loss(
    objective: Objective,
    logits: Float[Array, "b q"],
    labels: UInt32[Array, "b lw"],
    progress: ScalarLike,
    similar_fraction: ScalarLike,
    *,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean of w_ij L(d_ij, s_ij) over the pairs i != j, plus the mean penalty.

    With `axis_name` each device holds an equal part of the batch: its images are compared with
    all images, so that the mean over devices of the losses, and of their gradients, is what one
    device computes on the whole batch.

    Args:
      objective: the base hashing model.
      logits: outputs of the hash layer, before any relaxation.
      labels: packed labels of the same images.
      progress: done share of the training, in [0, 1].
      similar_fraction: share of similar pairs in the training set.
      axis_name: the axis over which the batch is shared out, if it is.

    Returns:
      The loss, and its parts `loss`, `pair_loss` and `penalty`.
    """
    relaxed = objective.relax(logits, progress)
    all_relaxed, all_labels, first = relaxed, labels, 0
    if axis_name is not None:
        all_relaxed = jax.lax.all_gather(relaxed, axis_name, tiled=True)
        all_labels = jax.lax.all_gather(labels, axis_name, tiled=True)
        first = jax.lax.axis_index(axis_name) * len(logits)
    distance = pairs.relaxed_distance(relaxed, all_relaxed)
    similar = pairs.similarity(labels, all_labels)
    weight = objective.pair_weight(similar, similar_fraction)
    rows = first + jnp.arange(len(logits))
    is_pair = rows[:, None] != jnp.arange(len(all_relaxed))[None, :]
    pair_loss = jnp.mean(weight * objective.pair_loss(distance, similar), where=is_pair)
    codes = sign(logits).astype(relaxed.dtype)
    penalty = jnp.mean(objective.penalty(codes, relaxed))
    loss = pair_loss + penalty
    return loss, {"loss": loss, "pair_loss": pair_loss, "penalty": penalty}


def loss_table(
    objective: Objective, num_bits: int, similar_fraction: ScalarLike
) -> Float[Array, "2 distances"]:
    """Returns w L at every distance 0..q, for dissimilar pairs (row 0) and similar ones (row 1).

    All that the agent's reward (Eq. 6) needs of a base hashing model: codes are binary there.
    """
    distance = jnp.tile(jnp.arange(num_bits + 1, dtype=jnp.float32), (2, 1))
    similar = jnp.tile(jnp.array([[False], [True]]), (1, num_bits + 1))
    return objective.pair_weight(similar, similar_fraction) * objective.pair_loss(distance, similar)


def no_penalty(codes: Float[Array, "b q"], relaxed: Float[Array, "b q"]) -> Float[Array, " b"]:
    """Returns 0 for every image: the method has no quantization loss."""
    del codes
    return jnp.zeros(len(relaxed))


def to_sphere(vectors: Float[Array, "b q"]) -> Float[Array, "b q"]:
    """Returns the vectors at norm sqrt(q), so that (q - <r_i, r_j>) / 2 = (q / 2) (1 - cos).

    The constant under the root bounds the gradient at an all-zero vector, which maps to zero; at
    any norm above 0.1 it changes less than one part in ten thousand.
    """
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jnp.sqrt(vectors.shape[-1] / (square + 1e-6))
