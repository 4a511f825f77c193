"""The one place where work is split among devices and processes.

Every process of a run executes the same program on the same data in the same order. Of each batch
its devices take their part. Only the first process writes files (`processes.set_writer`). Work
that is not split, such as encoding, is done by the first process alone, after the others have left.
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

from mch_jax.files import processes

AXIS = "devices"
_alone = False  # True after the other processes have left


def start(
    coordinator: str | None, num_processes: int, process: int, patience: float = 120.0
) -> None:
    """Makes this process one of several that train together. It must precede any use of JAX.

    Args:
      coordinator: Address HOST:PORT of the first process.
      num_processes: Number of processes.
      process: Number of this process, from 0.
      patience: Seconds to wait for the first process to answer.

    Raises:
      ValueError: The arguments do not fit each other, the first process does not answer, or it
        cannot listen on the port.
    """
    host, _, port = (coordinator or "").rpartition(":")
    is_address = host and port.isdigit() and 0 < int(port) < 2**16
    if not is_address or not 0 <= process < num_processes:
        raise ValueError(
            f"--coordinator={coordinator} --processes={num_processes} --process={process} do not "
            "fit: expected HOST:PORT of the first process, and --process from 0 to --processes - 1"
        )
    # If JAX cannot connect, it ends the program with a C++ stack trace.
    _await_first(host, int(port), patience) if process else _check_free(int(port))
    # JAX's own handler of SIGTERM would replace that of `termination`.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(coordinator, num_processes, process)
    processes.set_writer(process == 0)


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
    """Returns the number of processes that work together."""
    return 1 if _alone else jax.process_count()


def any_process(flag: bool) -> bool:
    """Returns True if the flag is set in any process. Collective: all processes must call it."""
    if num_processes() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def leave() -> bool:
    """Ends the cooperation of the processes.

    Returns:
      True in the first process, which continues alone. The others have nothing left to do.
    """
    global _alone
    if num_processes() > 1:
        jax.distributed.shutdown()
        _alone = True
    return jax.process_index() == 0


def mapped_over(
    step: Callable,
    in_axes: Sequence[int | None],
    devices: Sequence[Any],
    donate_argnums: int | tuple[int, ...] = 0,
) -> Callable:
    """Returns `jax.pmap` of a step on some devices, which may be those of another machine.

    Args:
      step: The step on one device, (state, ...) -> (state, ...).
      in_axes: 0 for each argument that has a leading axis over devices, None for the others.
      devices: The devices.
      donate_argnums: The arguments whose memory the results may take.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=tuple(in_axes),
        out_axes=None,
        devices=devices,
        donate_argnums=donate_argnums,
    )


def sharded_over(
    step: Callable,
    in_axes: Sequence[int | None],
    devices: Sequence[Any],
    donate_argnums: int | tuple[int, ...] = 0,
) -> Callable:
    """Returns `jax.shard_map` of a step over a mesh of devices; the results are `mapped_over`'s.

    It takes the place of `mapped_over` in `over_devices`, in one process. Several would have to
    pass global arrays. `shard_map` does not check that the results are replicated: with the check
    it sums gradients of replicated parameters over the devices, which the step itself averages.

    Args:
      step: The step on one device, (state, ...) -> (state, ...).
      in_axes: 0 for each argument that has a leading axis over devices, None for the others.
      devices: The devices.
      donate_argnums: The arguments whose memory the results may take.
    """
    spec = jax.sharding.PartitionSpec

    def one_device(*arguments):
        # A device's part has the leading axis still, with the length 1.
        return step(
            *(
                argument if axis is None else jax.tree.map(lambda x: x[0], argument)
                for argument, axis in zip(arguments, in_axes, strict=True)
            )
        )

    sharded = jax.shard_map(
        one_device,
        mesh=jax.sharding.Mesh(np.array(devices), (AXIS,)),
        in_specs=tuple(spec() if axis is None else spec(AXIS) for axis in in_axes),
        out_specs=spec(),
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=donate_argnums)


def over_devices(step: Callable, in_axes: Sequence[int | None], num_devices: int) -> Callable:
    """Returns `jax.pmap` of a step whose results are the same on every device.

    The step itself combines the devices' parts over `AXIS`. State is passed in (`None`
    in `in_axes`) and returned replicated. Batches have a leading axis over this process's devices.
    The first argument, the state, is donated: the new state takes its memory.

    Args:
      step: The step on one device, (state, ...) -> (state, ...).
      in_axes: 0 for each argument that has a leading axis over devices, None for the others.
      num_devices: Number of devices that each process uses.
    """
    devices = [
        device
        for process in range(num_processes())
        for device in _devices_of(process)[:num_devices]
    ]
    # With several processes the state is not on the step's devices and is copied anyway.
    mapped = mapped_over(step, in_axes, devices, () if num_processes() > 1 else 0)
    if num_processes() > 1:
        return mapped

    def placed(*arguments):
        # Otherwise the first state would be placed differently from later ones, and the second step
        # would compile again.
        return mapped(
            *(
                replicated(argument, num_devices) if axis is None else argument
                for argument, axis in zip(arguments, in_axes, strict=True)
            )
        )

    return placed


def mean(tree: Any) -> Any:
    """Returns the means over the devices. To be called inside a step."""
    return tree if jax.lax.axis_size(AXIS) == 1 else jax.lax.pmean(tree, AXIS)


def replicated(tree: Any, num_devices: int) -> Any:
    """Returns arrays with a copy on each device, placed as `over_devices` returns them.

    With several processes they are placed on one of this process's devices only.
    """
    if num_processes() > 1:
        return jax.device_put(tree)
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:num_devices]), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def _devices_of(process: int) -> list[Any]:
    if num_processes() == 1:
        return jax.local_devices()
    return [device for device in jax.devices() if device.process_index == process]


def split_batch(batch: Any, num_devices: int) -> Any:
    """Returns this process's part of arrays, their first axis split into devices and examples."""
    total = num_processes() * num_devices
    first = jax.process_index() * num_devices if num_processes() > 1 else 0

    def own(x):
        return x.reshape(total, len(x) // total, *x.shape[1:])[first : first + num_devices]

    return jax.tree.map(own, batch)


def usable_devices(batch_size: int) -> int:
    """Returns the largest number of devices per process among which a batch can be split evenly.

    Raises:
      ValueError: The batch size is not a multiple of the number of processes.
    """
    processes, most = num_processes(), jax.local_device_count()
    fitting = [n for n in range(1, most + 1) if batch_size % (n * processes) == 0]
    if not fitting:
        raise ValueError(
            f"a batch of {batch_size} cannot be split among {processes} processes; "
            "expected a multiple of their number"
        )
    return fitting[-1]


def pad_to_multiple(x: np.ndarray, multiple: int) -> np.ndarray:
    """Returns the array padded with rows of zeros to the next multiple of `multiple` rows."""
    return np.pad(x, [(0, -len(x) % multiple)] + [(0, 0)] * (x.ndim - 1))


def pad_for_devices(x: np.ndarray, num_devices: int) -> np.ndarray:
    """Returns the array padded with rows of zeros, so that `split_batch` splits it evenly."""
    return pad_to_multiple(x, num_processes() * num_devices)


def whole_size(batch_size: int) -> int:
    """Returns the size of the whole batch, given that of this device's part. Inside a step only."""
    return batch_size * jax.lax.axis_size(AXIS)


def example_rows(batch_size: int) -> Int[Array, " b"]:
    """Returns the positions of this device's examples in the whole batch. Inside a step only."""
    return jax.lax.axis_index(AXIS) * batch_size + jnp.arange(batch_size)


def example_keys(
    key: Key[Array, ""], step: Int[Array, ""], rows: Int[Array, " b"]
) -> Key[Array, " b"]:
    """Returns a random key for each example at some positions of the whole batch.

    Keys depend on the step and on the example's position in the whole batch, but neither on the
    number of devices nor on earlier draws.

    Args:
      key: Random key of the whole training.
      step: Number of steps taken.
      rows: Positions of the examples in the whole batch, such as `example_rows`.
    """
    key = jax.random.fold_in(key, step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
