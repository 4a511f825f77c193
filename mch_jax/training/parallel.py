"""The one place where work is shared out, among devices and among processes.

Every process of a run does the same, with the same data in the same order: of each batch its
devices take their part. Files are the first process's to write (`checkpoint.write_files`). What is
not shared out, such as encoding, the first process does alone after the others have left.
"""

import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Int, Key

from mch_jax.files import checkpoint

AXIS = "devices"
_alone = False  # whether this process goes on after the others have left


def start(
    coordinator: str | None, num_processes: int, process: int, patience: float = 120.0
) -> None:
    """Makes this process one of several that train together; has to come before any use of JAX.

    Args:
      coordinator: address of the first process, HOST:PORT.
      num_processes: how many there are.
      process: which one this is, from 0 on.
      patience: seconds until the first process has to answer.

    Raises:
      ValueError: the numbers do not fit, the first process does not answer, or it cannot listen.
    """
    host, _, port = (coordinator or "").rpartition(":")
    is_address = host and port.isdigit() and 0 < int(port) < 2**16
    if not is_address or not 0 <= process < num_processes:
        raise ValueError(
            f"--coordinator={coordinator} --processes={num_processes} --process={process} do not "
            "fit: expected HOST:PORT of the first process, and a number below that of processes"
        )
    # JAX itself ends the program with a stack of C++ where it cannot connect.
    _await_first(host, int(port), patience) if process else _check_free(int(port))
    # Its own handler of SIGTERM would take the place of `termination`'s.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(coordinator, num_processes, process)
    checkpoint.write_files(process == 0)


def _check_free(port: int) -> None:
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise ValueError(
            f"the first process cannot listen on port {port}: {error.strerror}; choose another"
        ) from None


def _await_first(host: str, port: int, patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"the first process does not answer at {host}:{port}: {error.strerror or error}"
                ) from None
        time.sleep(0.2)


def num_processes() -> int:
    """Returns how many processes work together."""
    return 1 if _alone else jax.process_count()


def any_process(yes: bool) -> bool:
    """Returns whether it is so in any process; every process has to ask."""
    if num_processes() == 1:
        return yes
    return bool(multihost_utils.process_allgather(np.array(yes)).any())


def part() -> bool:
    """Parts from the other processes; returns whether this is the first, which goes on alone."""
    global _alone
    if num_processes() > 1:
        jax.distributed.shutdown()
        _alone = True
    return jax.process_index() == 0


def over_devices(step: Callable, in_axes: Sequence[int | None], num_devices: int) -> Callable:
    """Returns `jax.pmap` of a step that gives the same results on every device.

    The step averages gradients and batch statistics over `AXIS` itself. State goes in (`None` in
    `in_axes`) and comes out replicated; batches go in with a leading axis of this process's
    devices, `num_devices` of which every process uses. The first argument, the state, is used up:
    the new state takes its memory.
    """
    devices = [
        device
        for process in range(num_processes())
        for device in _devices_of(process)[:num_devices]
    ]
    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=tuple(in_axes),
        out_axes=None,
        devices=devices,
        # Among several processes the state lies elsewhere than in the step, and is copied anyway.
        donate_argnums=() if num_processes() > 1 else 0,
    )
    if num_processes() > 1:
        return mapped

    def placed(*arguments):
        # Where the first state lies elsewhere than later ones, the second step compiles again.
        return mapped(
            *(
                replicated(argument, num_devices) if axis is None else argument
                for argument, axis in zip(arguments, in_axes, strict=True)
            )
        )

    return placed


def mean(tree: Any) -> Any:
    """Returns means over the devices, inside a step; one device's are not copied."""
    return tree if jax.lax.axis_size(AXIS) == 1 else jax.lax.pmean(tree, AXIS)


def replicated(tree: Any, num_devices: int) -> Any:
    """Returns arrays as they come out of `over_devices`, a copy on each device; most are there.

    Among several processes they stay where they are, on one of this process's devices.
    """
    if num_processes() > 1:
        return jax.device_put(tree)
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:num_devices]), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def _devices_of(process: int) -> list[Any]:
    if num_processes() == 1:
        return jax.local_devices()
    return [device for device in jax.devices() if device.process_index == process]


def share_out(batch: Any, num_devices: int) -> Any:
    """Returns this process's part of arrays, first axis split into devices and examples."""
    total = num_processes() * num_devices
    first = jax.process_index() * num_devices if num_processes() > 1 else 0

    def own(x):
        return x.reshape(total, len(x) // total, *x.shape[1:])[first : first + num_devices]

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
