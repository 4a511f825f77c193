"""What makes up a base hashing model, and the loss of a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike, UInt32

from mch_jax import collectives, pairs
from mch_jax.codes import sign


class Batch(NamedTuple):
    """What a `batch_loss` sees of a batch, which is whole even if several devices share it.

    Attributes:
      logits: Outputs of the hash layer, before any relaxation.
      relaxed: Relaxed codes of the images.
      targets: Multi-hot labels of the same images.
      parameters: Parameters of the loss itself (`Objective.parameters`), or None.
    """

    logits: Float[Array, "b q"]
    relaxed: Float[Array, "b q"]
    targets: Float[Array, "b c"]
    parameters: Any = None


class Objective(NamedTuple):
    """The losses of a base hashing model.

    The first four functions are a loss of pairs. A method whose loss is another one, for instance
    of an image and the centre of a class, also has a `batch_loss`. Training then minimises it
    instead of the mean of `pair_loss`. `pair_loss` still determines the reward, and the method's
    file says how the two are related.

    Attributes:
      relax: (logits [b q], progress in [0, 1]) -> relaxed codes [b q]. The distance of two relaxed
        codes is always (q - <r_i, r_j>) / 2, so a method based on cosines returns vectors of norm
        sqrt(q).
      pair_loss: (distance in bits, similarity) -> loss, elementwise. It serves training on relaxed
        codes and the agent's reward on binary codes. It is therefore finite, with a finite
        gradient, for every distance from 0 to q.
      pair_weight: (similarity, fraction of similar pairs in the training set) -> weight w_ij,
        elementwise.
      penalty: (codes [b q] as floats, relaxed codes [b q]) -> quantization loss of each image [b].
      batch_loss: `Batch` -> loss of the batch, a scalar without the penalty. None for a loss of
        pairs.
      parameters: (number of classes, random generator) -> parameters of the batch loss that are
        trained with the network, a tree of float32 arrays. None if it has no parameters.
      num_bits: The code length that the losses were made for; None if any will do.
    """

    relax: Callable[[Array, ScalarLike], Array]
    pair_loss: Callable[[Array, Array], Array]
    pair_weight: Callable[[Array, ScalarLike], Array]
    penalty: Callable[[Array, Array], Array]
    batch_loss: Callable[[Batch], Array] | None = None
    parameters: Callable[[int, np.random.Generator], Any] | None = None
    num_bits: int | None = None


class Alternating(NamedTuple):
    """Alternating training: the network on a sample, then free codes of the training set.

    In each turn a sample of the training set is drawn. The network is trained on it for a few
    epochs with the free codes held, then the free codes are updated with the network held. `target`
    stands for what `make_target` returned for the turn's sample.

    Attributes:
      sample_size: Number of images in a sample; at most the training set, at least a batch. None
        for the whole training set.
      num_epochs: Number of epochs over the sample in each turn.
      make_target: (similarity [m n] of the sample to the training set) -> target of the turn.
      loss: (relaxed codes [b q], rows [b] of the batch in the training set, similarity [b n], free
        codes [n q], target, random keys [b]) -> loss of the batch.
      update: (free codes [n q], relaxed codes [m q] of the sample, rows [m], similarity [m n],
        target) -> free codes [n q]. The free codes are zero before the first update.
    """

    sample_size: int | None
    num_epochs: int
    make_target: Callable[[Array], Array]
    loss: Callable[[Array, Array, Array, Array, Array, Array], Array]
    update: Callable[[Array, Array, Array, Array, Array], Array]


class Method(NamedTuple):
    """A base hashing model: its losses, and how it is trained.

    Without `closed_form` and `alternating` the network is trained on the objective by gradient
    descent.

    Attributes:
      objective: (num_bits, **settings) -> Objective. None for a method without a pair loss, which
        then has no reward and no agent.
      closed_form: (features [n d], packed labels [n lw], num_bits, key, **settings) -> parameters
        of the hash layer. The features are those of the network before training.
      alternating: (**settings) -> Alternating.
      kernel_head: Whether the hash layer is `models.KernelHead` instead of a linear layer. Its
        number of anchors is then the setting `num_anchors` of the closed form.
    """

    objective: Callable[..., Objective] | None = None
    closed_form: Callable[..., dict[str, Any]] | None = None
    alternating: Callable[..., Alternating] | None = None
    kernel_head: bool = False


def base_loss(
    objective: Objective,
    logits: Float[Array, "b q"],
    labels: UInt32[Array, "b lw"],
    progress: ScalarLike,
    similar_fraction: ScalarLike,
    *,
    num_classes: int | None = None,
    parameters: Any = None,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the mean of w_ij L(d_ij, s_ij) over the pairs i != j, plus the mean penalty.

    If the objective has a batch loss, that takes the place of the mean over pairs.

    It can be called in `jax.jit`, with the objective as a static argument, and in programs whose
    batch is sharded over a mesh, with automatic or with explicit axes.

    With `axis_name` each device holds an equal share of the batch, and all of them compute the loss
    of the whole batch. The mean over devices of their gradients then equals what one device
    computes on the whole batch.

    Args:
      objective: Losses of the base hashing model.
      logits: Outputs of the hash layer, before any relaxation.
      labels: Packed labels of the same images.
      progress: Fraction of the training that is done, in [0, 1].
      similar_fraction: Fraction of similar pairs in the training set.
      num_classes: Number of classes; needed by a batch loss.
      parameters: Parameters of the batch loss.
      axis_name: Mapped axis over which the batch is split, or None.

    Returns:
      The loss, and the scalars `loss`, `pair_loss` (the batch loss if there is one) and `penalty`.

    Raises:
      ValueError: The objective has a batch loss and the number of classes is not given, or the
        objective was made for another number of bits.
    """
    if objective.num_bits not in (None, logits.shape[-1]):
        raise ValueError(
            f"logits: got {logits.shape[-1]} of each image, expected {objective.num_bits}, the "
            "number of bits of the objective"
        )
    if axis_name is None:
        logits, labels = _everywhere(logits), _everywhere(labels)
    else:
        logits, labels = collectives.whole_batch(logits, labels, axis_name)
    relaxed = objective.relax(logits, progress)
    if objective.batch_loss is None:
        pair_loss = _mean_over_pairs(objective, relaxed, labels, similar_fraction)
    elif num_classes is None:
        raise ValueError("num_classes: got None, expected a number, which the batch loss needs")
    else:
        targets = pairs.unpack_labels(labels, num_classes)
        pair_loss = objective.batch_loss(Batch(logits, relaxed, targets, parameters))
    codes = sign(logits).astype(relaxed.dtype)
    penalty = jnp.mean(objective.penalty(codes, relaxed))
    loss = pair_loss + penalty
    return loss, {"loss": loss, "pair_loss": pair_loss, "penalty": penalty}


def _everywhere(x: Array) -> Array:
    """Returns an array of which every device has the whole, if its mesh has explicit axes."""
    sharding = jax.typeof(x).sharding
    if not sharding.mesh.explicit_axes:
        return x
    return jax.sharding.reshard(x, jax.sharding.PartitionSpec())


def _mean_over_pairs(
    objective: Objective,
    relaxed: Float[Array, "b q"],
    labels: UInt32[Array, "b lw"],
    similar_fraction: ScalarLike,
) -> Float[Array, ""]:
    """Returns the mean of w_ij L(d_ij, s_ij) over the pairs i != j."""
    distance = pairs.relaxed_distance(relaxed, relaxed)
    similar = pairs.similarity(labels, labels)
    weight = objective.pair_weight(similar, similar_fraction)
    is_pair = ~jnp.eye(len(relaxed), dtype=bool)
    return jnp.mean(weight * objective.pair_loss(distance, similar), where=is_pair)


def loss_table(
    objective: Objective, num_bits: int, similar_fraction: ScalarLike
) -> Float[Array, "2 distances"]:
    """Returns w L at every distance 0..q, for dissimilar pairs (row 0) and similar pairs (row 1).

    This is all that the agent's reward (Eq. 6) needs of a base hashing model, since codes are
    binary there.
    """
    distance = jnp.tile(jnp.arange(num_bits + 1, dtype=jnp.float32), (2, 1))
    similar = jnp.tile(jnp.array([[False], [True]]), (1, num_bits + 1))
    return objective.pair_weight(similar, similar_fraction) * objective.pair_loss(distance, similar)


def no_penalty(codes: Float[Array, "b q"], relaxed: Float[Array, "b q"]) -> Float[Array, " b"]:
    """Returns 0 for every image; the penalty of a method without a quantization loss."""
    del codes
    return jnp.zeros(len(relaxed))


def to_sphere(vectors: Float[Array, "b q"]) -> Float[Array, "b q"]:
    """Returns the vectors scaled to norm sqrt(q), so that (q - <r_i, r_j>) / 2 = (q / 2) (1 - cos).

    The constant under the root bounds the gradient at an all-zero vector, which maps to zero. At
    norms above 0.1 it changes the result by less than one part in ten thousand.
    """
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jnp.sqrt(vectors.shape[-1] / (square + 1e-6))
