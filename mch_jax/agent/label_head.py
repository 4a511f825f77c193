"""A label head on features that the base model does not have, as evidence about labels.

The base model's own label head shares its features, which are made for hashing. Where features of
another network are at hand, a head with one hidden layer on them tells the labels of a region more
surely. Several heads, such as one for each fold, are one ensemble, whose logits are their mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, UInt8

from mch_jax.codes import AnyArray

WIDTH = 512
DROPOUT = 0.5  # of inputs and hidden units; features of one network often say the same thing
BATCH = 512
EPOCHS = 128
MIN_STEPS = 600
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1


def logits(
    heads: Mapping[str, AnyArray], features: Float[AnyArray, "*b d"]
) -> Float[Array, "*b c"]:
    """Returns the label logits of regions, the mean over the heads.

    Args:
      heads: Result of `fit` or `ensemble`.
      features: Features of the regions.
    """
    flat = jnp.asarray(features, jnp.float32).reshape(-1, features.shape[-1])
    exact = jax.lax.Precision.HIGHEST
    hidden = jnp.einsum("nd,kdw->knw", flat, heads["hidden_kernel"], precision=exact)
    hidden = jax.nn.relu(hidden + jnp.asarray(heads["hidden_bias"])[:, None])
    found = jnp.einsum("knw,kwc->nc", hidden, heads["kernel"], precision=exact)
    found = found / len(heads["kernel"]) + jnp.asarray(heads["bias"]).mean(0)[None]
    return found.reshape(*features.shape[:-1], -1)


def num_features(heads: Mapping[str, AnyArray]) -> int:
    """Returns the number d of features that a result of `fit` or `ensemble` reads."""
    return heads["hidden_kernel"].shape[1]


def ensemble(heads: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns several results of `fit` as one, whose logits are the mean of theirs."""
    return {name: np.concatenate([head[name] for head in heads]) for name in heads[0]}


def fit(
    views: Float[np.ndarray, "n v d"], labels: UInt8[np.ndarray, "n c"], seed: int
) -> dict[str, np.ndarray]:
    """Returns a label head, fitted to photos and to random regions of them.

    A region has the labels of its photo, although it may not show all of them.

    Args:
      views: Features of the photos' views.
      labels: Multi-hot labels of the photos.
      seed: Seed of the initial weights, the batches and dropout.

    Returns:
      Arrays `hidden_kernel` [1 d w], `hidden_bias` [1 w], `kernel` [1 w c] and `bias` [1 c].
    """
    flat = np.asarray(views, np.float32).reshape(-1, views.shape[-1])
    mean, std = flat.mean(0), flat.std(0) + 1e-3
    num_steps = max(EPOCHS * len(views) // BATCH, MIN_STEPS)
    depth, num_classes = flat.shape[1], labels.shape[1]
    keys = jax.random.split(jax.random.key(seed))
    params = {
        "hidden_kernel": jax.random.normal(keys[0], (depth, WIDTH)) / np.sqrt(depth),
        "hidden_bias": jnp.zeros(WIDTH),
        "kernel": jnp.zeros((WIDTH, num_classes)),
        "bias": jnp.zeros(num_classes),
    }
    rng = np.random.default_rng(seed)
    photo = rng.integers(len(views), size=(num_steps, BATCH))
    view = rng.integers(views.shape[1], size=(num_steps, BATCH))
    fitted = jax.device_get(
        _descend(
            params, (flat - mean) / std, jnp.asarray(labels, jnp.float32),
            jnp.asarray(photo), jnp.asarray(photo * views.shape[1] + view), keys[1],
        )
    )  # fmt: skip
    kernel = fitted["hidden_kernel"] / std[:, None]
    fitted |= {"hidden_kernel": kernel, "hidden_bias": fitted["hidden_bias"] - mean @ kernel}
    return {name: value[None] for name, value in fitted.items()}


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

    def drop(key, x):
        kept = jax.random.bernoulli(key, 1 - DROPOUT, x.shape)
        return jnp.where(kept, x / (1 - DROPOUT), 0)

    def step(carry, batch):
        params, opt_state = carry
        photo, row, key = batch
        keys = jax.random.split(key)
        x = drop(keys[0], features[row])

        def loss(params):
            hidden = jax.nn.relu(x @ params["hidden_kernel"] + params["hidden_bias"][None])
            found = drop(keys[1], hidden) @ params["kernel"] + params["bias"][None]
            return optax.sigmoid_binary_cross_entropy(found, labels[photo]).sum(1).mean()

        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(key, len(photo))
    (trained, _), _ = jax.lax.scan(step, (params, tx.init(params)), (photo, row, keys))
    return trained
