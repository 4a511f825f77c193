"""The one place where work is shared out among devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

AXIS = "devices"


def over_devices(step: Callable, in_axes: Sequence[int | None], num_devices: int) -> Callable:
    """Returns `jax.pmap` of a step that gives the same results on every device.

    The step averages gradients and batch statistics over `AXIS` itself. State goes in (`None` in
    `in_axes`) and comes out replicated; batches go in with a leading axis of devices.
    """
    devices = jax.local_devices()[:num_devices]
    return jax.pmap(step, axis_name=AXIS, in_axes=tuple(in_axes), out_axes=None, devices=devices)


def share_out(batch: Any, num_devices: int) -> Any:
    """Returns arrays with their first axis split into devices and examples."""
    return jax.tree.map(
        lambda x: x.reshape(num_devices, len(x) // num_devices, *x.shape[1:]), batch
    )


def usable_devices(batch_size: int) -> int:
    """Returns the largest number of local devices that divides a batch."""
    return max(n for n in range(1, jax.local_device_count() + 1) if batch_size % n == 0)


def pad_to_multiple(x: np.ndarray, multiple: int) -> np.ndarray:
    """Returns an array with zero rows at its end, so that `multiple` divides their number."""
    return np.pad(x, [(0, -len(x) % multiple)] + [(0, 0)] * (x.ndim - 1))


def example_rows(batch_size: int) -> Int[Array, " b"]:
    """Returns this device's positions in the whole batch."""
    return jax.lax.axis_index(AXIS) * batch_size + jnp.arange(batch_size)


def example_keys(key: Key[Array, ""], step: Int[Array, ""], batch_size: int) -> Key[Array, " b"]:
    """Returns a key for each example of this device's part of the batch at one step.

    They depend on the step and on the example's place in the whole batch, hence neither on the
    number of devices nor on what was drawn before.
    """
    key = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(example_rows(batch_size))
