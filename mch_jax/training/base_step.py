"""One step of base training: augmentation, losses, gradient, optimizer."""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode
from jaxtyping import Array, Float, Key, UInt8, UInt32

from mch_jax import models, pairs, regions
from mch_jax.methods import base as losses
from mch_jax.methods.base import Objective
from mch_jax.models import AlexNet
from mch_jax.training import parallel

OBJECTIVE = "objective"  # the entry of the trained parameters that belongs to the loss
HEADS = ("hash", "labels", OBJECTIVE)  # start from random parameters
CROP_OF_256 = 0.875  # a 224 pixel crop of a 256 pixel photo, the usual augmentation


class BaseTrainState(PyTreeNode):
    """What changes while the base model trains.

    Attributes:
      step: Number of steps taken.
      params: The parameters that are trained.
      opt_state: State of the optimizer.
    """

    step: Any
    params: Any
    opt_state: Any


def initial_state(params: Any, tx: optax.GradientTransformation) -> BaseTrainState:
    """Returns the state before the first step."""
    return BaseTrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params))


def optimizer(
    name: str,
    *,
    num_steps: int,
    learning_rate: float,
    hash_rate: float,
    warmup: float,
    momentum: float,
    weight_decay: float,
) -> optax.GradientTransformation:
    """Returns the optimizer, whose learning rate falls to zero along half a cosine.

    Args:
      name: `sgd`, or `adam` with decoupled weight decay.
      num_steps: Number of steps of the training.
      learning_rate: Largest learning rate.
      hash_rate: Factor on the learning rate of `HEADS`: the hash layer, the label head, and the
        parameters of the loss.
      warmup: Fraction of the steps in which the learning rate rises.
      momentum: Momentum of SGD.
      weight_decay: Weight decay of all parameters but biases.
    """

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim > 1, params)

    def rule(rate: float) -> optax.GradientTransformation:
        num_rising = round(warmup * num_steps)
        schedule = optax.warmup_cosine_decay_schedule(
            0.0 if num_rising else rate, rate, num_rising, num_steps
        )
        if name == "adam":
            return optax.adamw(schedule, weight_decay=weight_decay, mask=decays)
        return optax.chain(
            optax.add_decayed_weights(weight_decay, decays),
            optax.sgd(schedule, momentum=momentum),
        )

    def label(params: Mapping[str, Any]) -> dict[str, str]:
        return {name: "head" if name in HEADS else "body" for name in params}

    rules: dict[Hashable, optax.GradientTransformation] = {
        "body": rule(learning_rate),
        "head": rule(learning_rate * hash_rate),
    }
    return optax.partition(rules, label)


def augment(
    images: UInt8[Array, "b h w 3"],
    keys: Key[Array, " b"],
    *,
    size: int,
    crop_fraction: float,
    crop_ratio: float,
) -> Float[Array, "b s s 3"]:
    """Returns random crops, half of them mirrored.

    Args:
      images: Images with values in [0, 255].
      keys: Random key of each image.
      size: Height and width of the network's input.
      crop_fraction: Probability that a crop is a region as small as those of encoding.
      crop_ratio: Side ratio of those regions.
    """

    def draw(key):
        flip, kind, position = jax.random.split(key, 3)
        box = jnp.where(
            jax.random.uniform(kind) < crop_fraction,
            regions.random_box(position, crop_ratio),
            regions.random_box(position, CROP_OF_256),
        )
        return box, jax.random.bernoulli(flip)

    boxes, flips = jax.vmap(draw)(keys)
    return regions.crop(images, boxes, size, flips)


def prepare(
    batch: Mapping[str, Array], keys: Key[Array, " b"], **settings: Any
) -> Mapping[str, Array]:
    """Returns a batch as the network takes it: photos augmented, features as they are.

    Args:
      batch: `image` or `conv`, and other arrays, which stay as they are.
      keys: Random key of each example.
      **settings: Keyword arguments of `augment`.
    """
    if "conv" in batch:
        return batch
    return {**batch, "image": augment(batch["image"], keys, **settings)}


def train_step(
    state: BaseTrainState,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
    shared: Mapping[str, Array],
    *,
    loss_fn: Callable,
    prepare: Callable,
    tx: optax.GradientTransformation,
    num_steps: int,
) -> tuple[BaseTrainState, dict[str, Array]]:
    """Returns the state after one step on a device's part of a batch, and scalars to log.

    Args:
      state: State before the step.
      batch: `conv` or `image`, `labels`, and what else the loss needs.
      key: Random key of the whole training.
      shared: What the loss needs of the whole training set.
      loss_fn: Function (params, batch, example keys, progress, shared) -> (loss, scalars).
      prepare: Function (batch, example keys) -> batch as the network takes it.
      tx: The optimizer.
      num_steps: Number of steps of the whole training.
    """
    rows = parallel.example_rows(len(batch["labels"]))
    keys = parallel.example_keys(key, state.step, rows)
    split = jax.vmap(lambda k: jax.random.split(k))(keys)
    batch = prepare(batch, split[:, 0])
    progress = state.step / num_steps
    grads, scalars = jax.grad(loss_fn, has_aux=True)(
        state.params, batch, split[:, 1], progress, shared
    )
    grads, scalars = parallel.mean((grads, scalars))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return BaseTrainState(step=state.step + 1, params=params, opt_state=opt_state), scalars


def over_devices(
    loss_fn: Callable,
    prepare: Callable,
    tx: optax.GradientTransformation,
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
) -> Callable:
    """Returns the step on whole batches, (state, batch, shared) -> (state, scalars).

    Args:
      loss_fn: The loss, as `train_step` takes it.
      prepare: The preparation of a batch, as `train_step` takes it.
      tx: The optimizer.
      num_steps: Number of steps of the whole training.
      batch_size: Number of examples in a batch.
      seed: Seed of the run.
    """
    one_device = functools.partial(
        train_step, loss_fn=loss_fn, prepare=prepare, tx=tx, num_steps=num_steps
    )
    num_devices = parallel.usable_devices(batch_size)
    mapped = parallel.over_devices(one_device, (None, 0, None, None), num_devices)
    key = jax.random.key(seed)

    def step(state, batch, shared):
        return mapped(state, parallel.split_batch(batch, num_devices), key, shared)

    return step


def objective_loss(
    params: Mapping[str, Any],
    batch: Mapping[str, Array],
    keys: Key[Array, " b"],
    progress: Float[Array, ""],
    shared: Mapping[str, Array],
    *,
    model: AlexNet,
    objective: Objective,
    similar_fraction: float,
    num_classes: int,
    dropout: bool,
    label_weight: float,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Returns the base loss of a batch and its scalars (Sec. 3.1), with the label head's loss.

    Args:
      params: Parameters of the network and, under `OBJECTIVE`, of the loss.
      batch: `conv` or `image`, and packed `labels`.
      keys: Random key of each example's dropout.
      progress: Fraction of the training that is done, in [0, 1].
      shared: Not used.
      model: The network.
      objective: Losses of the base hashing model.
      similar_fraction: Fraction of similar pairs in the training set.
      num_classes: Number of classes of the data set.
      dropout: Whether the network uses dropout.
      label_weight: Weight of the label head's loss in the features.
    """
    del shared
    encoding = models.encode(model, params, batch, keys if dropout else None)
    loss, scalars = losses.base_loss(
        objective,
        encoding.logits,
        batch["labels"],
        progress,
        similar_fraction,
        num_classes=num_classes,
        parameters=params.get(OBJECTIVE),
        axis_name=parallel.AXIS,
    )
    return with_label_loss(
        loss, scalars, params, encoding.features, batch["labels"],
        num_classes=model.num_classes, label_weight=label_weight,
    )  # fmt: skip


def label_head_loss(
    params: Mapping[str, Any],
    batch: Mapping[str, Array],
    keys: Key[Array, " b"],
    progress: Float[Array, ""],
    shared: Mapping[str, Array],
    *,
    model: AlexNet,
    frozen: Mapping[str, Any],
    label_weight: float,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Returns the loss of the label head alone, on features that do not change.

    Args:
      params: Parameters of the label head.
      batch: `conv` or `image`, and packed `labels`.
      keys: Not used.
      progress: Not used.
      shared: Not used.
      model: The network.
      frozen: The other parameters of the network.
      label_weight: Weight of the label head's loss.
    """
    del keys, progress, shared
    features = models.encode(model, {**frozen, **params}, batch).features
    return with_label_loss(
        jnp.float32(0), {}, params, features, batch["labels"],
        num_classes=model.num_classes, label_weight=label_weight,
    )  # fmt: skip


def with_label_loss(
    loss: Float[Array, ""],
    scalars: Mapping[str, Array],
    params: Mapping[str, Any],
    features: Float[Array, "b d"],
    labels: UInt32[Array, "b lw"],
    *,
    num_classes: int,
    label_weight: float,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Returns a loss and its scalars, with the label head's loss added if there is a label head.

    Args:
      loss: The loss of the hash layer.
      scalars: Scalars to log.
      params: Parameters, with those of the label head.
      features: Features of the images.
      labels: Packed labels of the images.
      num_classes: Number of outputs of the label head; 0 without one.
      label_weight: Weight of the label head's loss. With 0 the head learns, but the features take
        no gradient from it.
    """
    if not num_classes:
        return loss, dict(scalars)
    features = features if label_weight else jax.lax.stop_gradient(features)
    logits = features @ params["labels"]["kernel"] + params["labels"]["bias"][None]
    targets = pairs.unpack_labels(labels, num_classes)
    entropy = optax.sigmoid_binary_cross_entropy(logits, targets).sum(1).mean()
    return loss + (label_weight or 1.0) * entropy, {**scalars, "label_loss": entropy}
