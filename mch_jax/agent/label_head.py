"""A label head on features that the base model does not have, as evidence about labels.

The base model's own label head shares its features, which are made for hashing. Where features of
another network are at hand, a linear head on them tells the labels of a region more surely.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from mch_jax.codes import AnyArray

DROPOUT = 0.5  # of the inputs; features of one network often say the same thing
BATCH = 256
EPOCHS = 60
MIN_STEPS = 300
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1


def logits(head: Mapping[str, AnyArray], features: Float[AnyArray, "*b d"]) -> Float[Array, "*b c"]:
    """Returns the label logits of regions.

    Args:
      head: Result of `fit`.
      features: Features of the regions.
    """
    flat = jnp.asarray(features, jnp.float32).reshape(-1, features.shape[-1])
    normal = (flat - head["mean"][None]) / head["std"][None]
    found = jnp.matmul(normal, head["kernel"], precision=jax.lax.Precision.HIGHEST)
    return (found + head["bias"][None]).reshape(*features.shape[:-1], -1)


def mean(heads: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the head whose logits are the mean of those of several heads.

    Args:
      heads: Results of `fit`, such as one for each fold.
    """
    kernel = np.mean([head["kernel"] / head["std"][:, None] for head in heads], 0)
    bias = np.mean(
        [head["bias"] - (head["mean"] / head["std"]) @ head["kernel"] for head in heads], 0
    )
    width = len(kernel)
    zeros, ones = np.zeros(width, np.float32), np.ones(width, np.float32)
    return {"kernel": kernel, "bias": bias, "mean": zeros, "std": ones}


def fit(
    views: Float[np.ndarray, "n v d"], labels: UInt8[np.ndarray, "n c"], seed: int
) -> dict[str, np.ndarray]:
    """Returns a linear label head, fitted to photos and to random regions of them.

    A region has the labels of its photo, although it may not show all of them.

    Args:
      views: Features of the photos' views.
      labels: Multi-hot labels of the photos.
      seed: Seed of the batches and of dropout.
    """
    flat = np.asarray(views, np.float32).reshape(-1, views.shape[-1])
    mean, std = flat.mean(0), flat.std(0) + 1e-3
    num_steps = max(EPOCHS * len(views) // BATCH, MIN_STEPS)
    width, num_classes = flat.shape[1], labels.shape[1]
    params = {"kernel": jnp.zeros((width, num_classes)), "bias": jnp.zeros(num_classes)}
    rng = np.random.default_rng(seed)
    size = min(BATCH, len(views))
    photo = rng.integers(len(views), size=(num_steps, size))
    view = rng.integers(views.shape[1], size=(num_steps, size))
    params = _descend(
        params, (flat - mean) / std, jnp.asarray(labels, jnp.float32),
        jnp.asarray(photo), jnp.asarray(photo * views.shape[1] + view), jax.random.key(seed),
    )  # fmt: skip
    return {**jax.device_get(params), "mean": mean, "std": std}


@jax.jit
def _descend(
    params: Any,
    features: Float[Array, "r d"],
    labels: Float[Array, "n c"],
    photo: Int[Array, "steps b"],
    row: Int[Array, "steps b"],
    key: Key[Array, ""],
) -> Any:
    """Returns the parameters after one step of Adam for each batch of rows."""
    tx = optax.adamw(
        optax.cosine_decay_schedule(LEARNING_RATE, len(photo)), weight_decay=WEIGHT_DECAY
    )

    def step(carry, batch):
        params, opt_state = carry
        photo, row, key = batch
        x = features[row]
        x = jnp.where(jax.random.bernoulli(key, 1 - DROPOUT, x.shape), x / (1 - DROPOUT), 0)

        def loss(params):
            found = x @ params["kernel"] + params["bias"][None]
            return optax.sigmoid_binary_cross_entropy(found, labels[photo]).sum(1).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(key, len(photo))
    (trained, _), _ = jax.lax.scan(step, (params, tx.init(params)), (photo, row, keys))
    return trained
