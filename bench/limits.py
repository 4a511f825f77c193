"""What the machine is, and the highest rates that it can reach."""

import functools
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np

from bench import measure
from mch_jax.kernels.bits import popcount


@numba.njit(nogil=True, cache=True)
def _count_bits(words, query, repeats):
    total = np.uint64(0)
    for turn in range(repeats):
        other = query + np.uint64(turn)
        for i in range(words.size):
            total += popcount(words[i] ^ other)
    return total


@numba.njit(nogil=True, cache=True)
def _read(words):
    total = np.uint64(0)
    for i in range(words.size):
        total ^= words[i]
    return total


def _together(call: Callable[[], Any]) -> float:
    """Returns the shortest time in which every core makes the call once."""
    count, best = measure.num_threads(), np.inf
    with ThreadPoolExecutor(count) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(lambda _: call(), range(count)))
            best = min(best, time.perf_counter() - start)
    return best


@functools.cache
def popcounts_per_second() -> float:
    """Returns how many 64-bit words in the L2 cache can be XORed and counted per second."""
    words = np.arange(1 << 15, dtype=np.uint64)  # 256 KiB
    _count_bits(words, np.uint64(1), 1)
    seconds = _together(lambda: _count_bits(words, np.uint64(1), 400))
    return measure.num_threads() * 400 * words.size / seconds


@functools.cache
def bytes_per_second() -> float:
    """Returns how many bytes can be read from memory per second."""
    words = np.ones(1 << 26, np.uint64)  # 512 MiB
    _read(words)
    return measure.num_threads() * words.nbytes / _together(lambda: _read(words))


@functools.cache
def flops_per_second() -> float:
    """Returns how many float32 operations are possible per second, the best of three libraries."""
    import jax
    import jax.numpy as jnp

    size, best = 2048, np.inf
    a = np.random.default_rng(0).random((size, size), np.float32)
    on_device = jnp.asarray(a)
    product = jax.jit(lambda x: x @ x)
    calls: list[Callable[[], Any]] = [lambda: a @ a, lambda: product(on_device)]
    torch = measure.torch_or_none()
    if torch is not None:
        tensor = torch.from_numpy(a)
        calls.append(lambda: tensor @ tensor)
    for call in calls:
        timing = measure.interleaved({"": call}, 5)[""]
        best = min(best, min(timing.wall))
    return 2 * size**3 / best


def machine() -> dict[str, Any]:
    """Returns a description of the machine: processor, device, versions and limits."""
    import jax

    names = [
        x.split(":")[1].strip()
        for x in Path("/proc/cpuinfo").read_text().splitlines()
        if x.startswith("model name")
    ]
    versions = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }
    for name, module in (("torch", measure.torch_or_none()), ("faiss", measure.faiss_or_none())):
        versions[name] = getattr(module, "__version__", "not installed")
    return {
        "processor": names[0] if names else platform.machine(),
        "device": str(jax.devices()[0].device_kind),
        "threads": measure.num_threads(),
        "gflops": flops_per_second() / 1e9,
        "read_gb_s": bytes_per_second() / 1e9,
        "popcounts_g_s": popcounts_per_second() / 1e9,
        **versions,
    }
