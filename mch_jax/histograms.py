"""Histograms for the measures: the number of items per Hamming distance, by a label in common.

The query x database matrix of distances is never formed. On the host numba kernels compute the
histogram in threads, on an accelerator JAX does. Both give the same integers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt32

from mch_jax import codes as codes_lib
from mch_jax import pairs
from mch_jax.codes import AnyArray
from mch_jax.kernels import histogram as kernels
from mch_jax.kernels.threads import in_threads
from mch_jax.metrics import Histogram

DEVICE_QUERIES = 64  # queries that an accelerator compares with the database at once


def label_histogram(
    query_packed: UInt32[AnyArray, "m w"],
    packed: UInt32[AnyArray, "t w n"],
    query_labels: UInt32[AnyArray, "m lw"],
    labels: UInt32[AnyArray, "lw n"],
    num_bits: int,
    *,
    on_device: bool | None = None,
    threads: int | None = None,
) -> Histogram:
    """Returns the number of items per distance from each query, without and with a shared label.

    The items are on the last axis, so that every step is a loop over adjacent memory.

    Args:
      query_packed: Packed codes of the queries.
      packed: Packed codes of the items; every item has t of them.
      query_labels: Packed labels of the queries.
      labels: Packed labels of the items.
      num_bits: Code length q.
      on_device: True to compute on JAX's default device, False to compute on the host. Defaults to
        True unless that device is the CPU. The results are equal.
      threads: Maximum number of threads on the host. Defaults to one per core.
    """
    if on_device is None:
        on_device = jax.default_backend() != "cpu"
    if on_device:
        counts = _device_histogram(query_packed, packed, query_labels, labels, num_bits)
        return np.asarray(counts).astype(np.int64).reshape(-1, num_bits + 1, 2)
    counts = np.zeros((len(query_packed), 2 * (num_bits + 1)), np.int64)
    queries, items = (_to_uint64(np.asarray(x), 1) for x in (query_packed, packed))
    query_label_words = _to_uint64(np.asarray(query_labels), 1)
    label_words = _to_uint64(np.asarray(labels), 0)
    if queries.shape[1] == 1 and num_bits <= 32:  # half the bytes, twice the speed
        queries, items = queries.astype(np.uint32), np.ascontiguousarray(packed)

    def run(rows: slice) -> None:
        kernels.label_histogram(
            queries[rows], items, query_label_words[rows], label_words, counts[rows]
        )

    in_threads(run, len(queries), threads)
    return counts.reshape(-1, num_bits + 1, 2)


def items_last(packed: UInt32[np.ndarray, "n t w"]) -> UInt32[np.ndarray, "t w n"]:
    """Returns packed codes in the layout that `label_histogram` takes."""
    return np.ascontiguousarray(np.transpose(packed, (1, 2, 0)))


def _to_uint64(words: UInt32[np.ndarray, "..."], axis: int) -> np.ndarray:
    """Returns uint32 words as uint64 words, two in one along an axis."""
    padding = [(0, 0)] * words.ndim
    padding[axis] = (0, words.shape[axis] % 2)
    halves = np.moveaxis(np.pad(words, padding), axis, 0).astype(np.uint64)
    wide = halves[::2] | halves[1::2] << np.uint64(32)
    return np.ascontiguousarray(np.moveaxis(wide, 0, axis))


@functools.partial(jax.jit, static_argnames="num_bits")
def _device_histogram(
    query_packed: UInt32[AnyArray, "m w"],
    packed: UInt32[AnyArray, "t w n"],
    query_labels: UInt32[AnyArray, "m lw"],
    labels: UInt32[AnyArray, "lw n"],
    num_bits: int,
) -> Int32[Array, "m bins"]:
    """Returns the histogram as one sum of comparisons per bin.

    An accelerator executes these in parallel, where a scatter waits for atomic additions. XLA fuses
    them, so that neither distances nor comparisons are written to memory.
    """
    num_bins = 2 * (num_bits + 1)

    def one(query):
        code, label = query
        distances = [codes_lib.distance_to(code, words) for words in packed]
        distance = functools.reduce(jnp.minimum, distances)
        bins = distance * 2 + pairs.shares_label(label, labels)
        return codes_lib.counts_by_reduction(bins, jnp.ones(len(bins), jnp.int32), num_bins)

    return jax.lax.map(one, (query_packed, query_labels), batch_size=DEVICE_QUERIES)
