"""The one place where work is shared out, among devices and among processes.

Every process of a run does the same, with the same data in the same order: of each batch its
devices take their part, and files are the first process's to write (`checkpoint.whole_file`). What
is not shared out, such as encoding, the first process does alone after the others have left.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Int, Key

from mch_jax import checkpoint

AXIS = "devices"
_alone = False  # whether this process goes on after the others have left


def start(coordinator: str, num_processes: int, process: int) -> None:
    """Makes this process one of several that train together; has to come before any use of JAX.

    Args:
      coordinator: address of the first process, HOST:PORT.
      num_processes: how many there are.
      process: which one this is, from 0 on.

    Raises:
      ValueError: the numbers do not fit, or the first process cannot be reached.
    """
    if not coordinator or not 0 <= process < num_processes:
        raise ValueError(
            f"--coordinator={coordinator} --processes={num_processes} --process={process} do not "
            "fit: expected HOST:PORT of the first process, and a number below that of processes"
        )
    try:
        jax.distributed.initialize(coordinator, num_processes, process)
    except RuntimeError as error:
        raise ValueError(f"process {process} of {num_processes} cannot start: {error}") from None
    checkpoint.write_files(process == 0)


def num_processes() -> int:
    """Returns how many processes work together."""
    return 1 if _alone else jax.process_count()


def wait() -> None:
    """Returns once every process is here."""
    if num_processes() > 1:
        multihost_utils.sync_global_devices("wait")


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Runs a block in the first process, then in the others, which find the files that it wrote."""
    if jax.process_index() > 0:
        wait()
    yield
    if jax.process_index() == 0:
        wait()


def part() -> bool:
    """Parts from the other processes; returns whether this is the first, which goes on alone."""
    global _alone
    if num_processes() > 1:
        wait()
        jax.distributed.shutdown()
        _alone = True
    return jax.process_index() == 0


def over_devices(step: Callable, in_axes: Sequence[int | None], num_devices: int) -> Callable:
    """Returns `jax.pmap` of a step that gives the same results on every device.

    The step averages gradients and batch statistics over `AXIS` itself. State goes in (`None` in
    `in_axes`) and comes out replicated; batches go in with a leading axis of this process's
    devices, `num_devices` of which every process uses.
    """
    devices = [
        device
        for process in range(num_processes())
        for device in _devices_of(process)[:num_devices]
    ]
    return jax.pmap(step, axis_name=AXIS, in_axes=tuple(in_axes), out_axes=None, devices=devices)


def _devices_of(process: int) -> list[Any]:
    if num_processes() == 1:
        return jax.local_devices()
    return [device for device in jax.devices() if device.process_index == process]


def share_out(batch: Any, num_devices: int) -> Any:
    """Returns this process's part of arrays, first axis split into devices and examples."""
    total = num_processes() * num_devices
    first = jax.process_index() * num_devices if num_processes() > 1 else 0

    def own(x):
        return x.reshape(total, -1, *x.shape[1:])[first : first + num_devices]

    return jax.tree.map(own, batch)


def usable_devices(batch_size: int) -> int:
    """Returns the largest number of this process's devices that divides a batch, among all."""
    processes, most = num_processes(), jax.local_device_count()
    fitting = [n for n in range(1, most + 1) if batch_size % (n * processes) == 0]
    if not fitting:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared among {processes} processes; "
            "expected a multiple of their number"
        )
    return fitting[-1]


def pad_to_multiple(x: np.ndarray, multiple: int) -> np.ndarray:
    """Returns an array with zero rows at its end, so that `multiple` divides their number."""
    return np.pad(x, [(0, -len(x) % multiple)] + [(0, 0)] * (x.ndim - 1))


def pad_for_devices(x: np.ndarray, num_devices: int) -> np.ndarray:
    """Returns an array with zero rows at its end, so that it can be shared out."""
    return pad_to_multiple(x, num_processes() * num_devices)


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
