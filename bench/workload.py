"""The model, sizes and synthetic data that several benchmarks share."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bench import inputs, limits
from configs import coco_dch
from mch_jax import methods, models, pairs
from mch_jax.models import AlexNet
from mch_jax.training import network

NUM_BITS, SIZE, INPUT = 64, 256, 224
HIDDEN = 4096
# Operations of AlexNet at 224 pixels with a hash layer of 64 bits, two for each multiply-add.
CONV_FLOPS = 2 * 655_566_528
HEAD_FLOPS = 2 * (9216 * 4096 + 4096 * 4096 + 4096 * NUM_BITS)
FLOPS = CONV_FLOPS + HEAD_FLOPS

CONFIG: Any = coco_dch.get_config()
MODEL: Any = AlexNet(num_bits=NUM_BITS, hidden=HIDDEN)
OBJECTIVE = methods.objective("dch", NUM_BITS)


class Labels(NamedTuple):
    """Random labels of a training set.

    Attributes:
      multi_hot: uint8 [n c].
      packed: uint32 [n lw].
      similar_fraction: Fraction of similar pairs.
    """

    multi_hot: np.ndarray
    packed: np.ndarray
    similar_fraction: float


@functools.cache
def train_labels(num_train: int) -> Labels:
    """Returns random labels of a training set."""
    labels = inputs.labels(np.random.default_rng(0), num_train)
    packed = pairs.pack_labels(labels)
    return Labels(labels, packed, pairs.similar_fraction(packed))


@functools.cache
def base_params():
    """Returns random parameters of the base model."""
    return jax.device_put(network.random_params(MODEL, INPUT, 0))


def needed_params(train_conv: bool):
    """Returns the parameters that encoding needs, with or without those of the convolutions."""
    return base_params() if train_conv else models.without_convolutions(base_params())


def pixels(count: int, size: int) -> np.ndarray:
    """Returns random images uint8 [b, h, w, 3]."""
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


def conv_features(count):
    """Returns random features of fixed convolutions, in the form in which they are cached."""
    x = np.random.default_rng(2).normal(0, 1, (count, 9216))
    return np.maximum(x, 0).astype(np.float16)


def by_flops(per_item: float):
    """Returns the limit of float32 arithmetic: its name and the items per second it allows."""
    return "float32 operations, items/s", limits.flops_per_second() / per_item


def stepping(step, state):
    """Returns a call that makes one step after another, since a step consumes its state."""
    state = jax.tree.map(jnp.copy, state)

    def call(*rest):
        nonlocal state
        state, scalars = step(state, *rest)
        return state, scalars

    return call
