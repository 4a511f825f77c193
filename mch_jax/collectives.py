"""Arrays that are split among devices, put together by as few operations as possible."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32


def gather(tree: Any, axis_name: str) -> Any:
    """Returns the rows of all devices of each array, by one all-gather of words of 32 bits.

    No gradient passes through it.

    Args:
      tree: Arrays [b ...] of this device, of types of 32 bits.
      axis_name: Mapped axis over which the rows are split.

    Returns:
      Arrays [n ...] of the same types, where n is b times the number of devices.
    """
    if jax.lax.axis_size(axis_name) == 1:
        return jax.lax.stop_gradient(tree)
    arrays, structure = jax.tree.flatten(jax.lax.stop_gradient(tree))
    words = [jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(len(x), -1) for x in arrays]
    ends = np.cumsum([x.shape[1] for x in words])[:-1]
    found = jax.lax.all_gather(jnp.concatenate(words, 1), axis_name, tiled=True)
    parts = (
        jax.lax.bitcast_convert_type(part.reshape(-1, *x.shape[1:]), x.dtype)
        for x, part in zip(arrays, jnp.split(found, ends, 1), strict=True)
    )
    return jax.tree.unflatten(structure, parts)


def whole_batch(
    logits: Float[Array, "b q"], labels: UInt32[Array, "b lw"], axis_name: str
) -> tuple[Float[Array, "n q"], UInt32[Array, "n lw"]]:
    """Returns the logits and labels of the whole batch, each device having a part of it.

    If every device computes the same loss of the result, then the mean over devices of its
    gradients is the gradient of the loss. The derivative is therefore this device's rows, times the
    number of devices, and needs no collective.

    Args:
      logits: Logits of this device's images.
      labels: Packed labels of the same images.
      axis_name: Mapped axis over which the batch is split.
    """
    found: Any = _whole_batch(logits, labels, axis_name)
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _whole_batch(logits: Array, labels: Array, axis_name: str) -> Any:
    return gather((logits, labels), axis_name)


def _forward(logits: Array, labels: Array, axis_name: str) -> tuple[Any, None]:
    return gather((logits, labels), axis_name), None


def _backward(axis_name: str, _: None, cotangents: tuple[Array, Any]) -> tuple[Array, None]:
    num_devices = jax.lax.axis_size(axis_name)
    size = len(cotangents[0]) // num_devices
    first = jax.lax.axis_index(axis_name) * size
    return num_devices * jax.lax.dynamic_slice_in_dim(cotangents[0], first, size), None


_whole_batch.defvjp(_forward, _backward)
