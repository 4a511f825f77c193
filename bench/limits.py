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
from llvmlite import ir
from numba.core import cgutils, types

from bench import measure
from mch_jax.index.segment import cache_aligned
from mch_jax.kernels.jit import intrinsic


@intrinsic
def _differing_bits(typingctx, words, query):
    """Returns the number of bits in which words, a multiple of 64 of them, differ from a query.

    It is written as operations on eight vectors of eight words. LLVM's own translation of such a
    loop uses shorter vectors on some processors, and takes twice as long there.
    """

    def generate(context, builder, signature, args):
        word, vector = ir.IntType(64), ir.VectorType(ir.IntType(64), 8)
        array = context.make_array(signature.args[0])(context, builder, args[0])
        (size,) = cgutils.unpack_tuple(builder, array.shape)
        popcounts = ir.FunctionType(vector, [vector])
        popcounts = cgutils.get_or_insert_function(builder.module, popcounts, "llvm.ctpop.v8i64")
        undefined = ir.Constant(vector, ir.Undefined)
        query = builder.shuffle_vector(
            builder.insert_element(undefined, args[1], word(0)),
            undefined,
            ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8),
        )
        totals = [cgutils.alloca_once(builder, vector) for _ in range(8)]
        for total in totals:
            builder.store(ir.Constant(vector, [0] * 8), total)
        with cgutils.for_range(builder, builder.udiv(size, word(64))) as loop:
            for i, total in enumerate(totals):
                position = builder.add(builder.mul(loop.index, word(64)), word(8 * i))
                address = builder.gep(array.data, [position])
                eight = builder.load(builder.bitcast(address, vector.as_pointer()), align=8)
                ones = builder.call(popcounts, [builder.xor(eight, query)])
                builder.store(builder.add(builder.load(total), ones), total)
        loaded = [builder.load(total) for total in totals]
        all_words = [builder.extract_element(one, word(i)) for one in loaded for i in range(8)]
        return functools.reduce(builder.add, all_words)

    return types.uint64(words, types.uint64), generate


@numba.njit(nogil=True, cache=True)
def count_bits(words, query, repeats):
    """Returns how many bits of words, a multiple of 64 of them, differ from several queries."""
    total = np.uint64(0)
    for turn in range(repeats):
        total += _differing_bits(words, query + np.uint64(turn))
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
    words = cache_aligned(1 << 15)  # 256 KiB
    words[:] = np.arange(1 << 15)
    count_bits(words, np.uint64(1), 1)
    seconds = _together(lambda: count_bits(words, np.uint64(1), 400))
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
