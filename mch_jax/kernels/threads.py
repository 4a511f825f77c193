"""Runs a kernel over slices of the queries in several threads. Kernels release Python's lock."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from mch_jax import machine


@functools.cache
def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(machine.cores())


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="kernel")


if hasattr(os, "register_at_fork"):  # Windows cannot fork
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has only one thread


def in_threads(
    run: Callable[[slice], Any],
    size: int,
    threads: int | None = None,
    *,
    slices_per_thread: int = 1,
    min_slice: int = 1,
) -> list[Any]:
    """Returns the results of `run` on consecutive slices of `size` queries, in their order.

    Args:
      run: Function of a slice. It must not call `in_threads`.
      size: Number of queries.
      threads: Maximum number of threads. Defaults to one per core.
      slices_per_thread: More than one evens out queries that take different times.
      min_slice: Number of queries below which another slice does not pay.
    """
    threads = num_cores() if threads is None else threads
    num_slices = min(slices_per_thread * threads, -(-size // min_slice))
    if threads <= 1 or num_slices <= 1:
        return [run(slice(0, size))]
    bounds = np.linspace(0, size, num_slices + 1).astype(int)
    return list(_pool(threads).map(run, map(slice, bounds[:-1], bounds[1:])))
