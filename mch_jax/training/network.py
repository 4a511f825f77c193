"""The base model's network of a config, and its parameters before training."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mch_jax import methods
from mch_jax.backbones import networks
from mch_jax.models import AlexNet
from mch_jax.training.streams import Stream, generator


def base_model(config: Any, num_classes: int) -> AlexNet:
    """Returns the network of a config, with a label head if the agent's recipe needs one.

    Args:
      config: Config of the run.
      num_classes: Number of classes of the data set.
    """
    cross_fits = config.agent.recipe == "cross_fit" and config.method in methods.OBJECTIVES
    has_kernel_head = methods.METHODS[config.method].kernel_head
    return AlexNet(
        num_bits=config.num_bits,
        hidden=config.model.hidden,
        width=config.model.width,
        num_anchors=config.model.num_anchors if has_kernel_head else 0,
        num_classes=num_classes if cross_fits else 0,
        conv_dtype=config.model.get("conv_dtype", "float32"),
        **_trunk(config),
    )


def has_trunk(config: Any) -> bool:
    """Returns whether a backbone takes the place of the convolutions and is trained."""
    return bool(config.model.get("backbone", "")) and config.base.train_conv


def _trunk(config: Any) -> dict[str, Any]:
    if not has_trunk(config):
        return {}
    model = config.model
    trunk = networks.trainable(model.backbone)
    return {"trunk": trunk, "mean": tuple(model.mean), "std": tuple(model.std)}


def random_params(model: AlexNet, input_size: int, seed: int) -> dict[str, Any]:
    """Returns random parameters: He's normal distribution, 0.01 for the heads, biases zero.

    They are drawn on the host, because compiling the layers' own initialisation takes longer than
    training a small network.

    Args:
      model: The network.
      input_size: Height and width of its input.
      seed: Seed of the run.
    """
    images = jax.ShapeDtypeStruct((1, input_size, input_size, 3), jnp.float32)
    return _random_like(jax.eval_shape(model.init, jax.random.key(0), images)["params"], seed)


def random_head(model: AlexNet, width: int, seed: int) -> dict[str, Any]:
    """Returns random parameters, as `random_params`, of the layers after the convolutions.

    Args:
      model: The network.
      width: Width of the features that stand in for those of the convolutions.
      seed: Seed of the run.
    """
    conv = jax.ShapeDtypeStruct((1, width), jnp.float32)
    init = functools.partial(model.init, method="head")
    return _random_like(jax.eval_shape(init, jax.random.key(0), conv)["params"], seed)


def _random_like(shapes: Any, seed: int) -> dict[str, Any]:
    rng = generator(seed, Stream.INITIAL_PARAMS)

    def draw(path, leaf):
        layer, name = path[0].key, path[-1].key
        if name != "kernel":
            return np.full(leaf.shape, name == "scale" and layer == "trunk", np.float32)
        std = 0.01 if layer in ("hash", "labels") else np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return rng.normal(0, std, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
