"""Binary codes: signs, packed words, popcount distances, and the two forms of a set of codes.

A code of q bits is an int8 vector in {-1, +1}. Packed, it is ceil(q / 32) uint32 words, least
significant bit first, with +1 stored as 1 and zeros as padding. The bytes of a codes file are the
bytes of these words, cut to ceil(q / 8).
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8, Int32, UInt8, UInt32

from mch_jax.files.codes_file import CodeFile

AnyArray = Array | np.ndarray  # on the device or on the host


class Encoding(NamedTuple):
    """What a base hashing model says of a batch of images.

    Attributes:
      features: fc7 after ReLU.
      logits: of the hash layer; their signs are the code.
      label_logits: of the label head; zero wide for a model without one.
    """

    features: Float[AnyArray, "b d"]
    logits: Float[AnyArray, "b q"]
    label_logits: Float[AnyArray, "b c"]


class CodeSet(NamedTuple):
    """Several codes per image at a fixed width; slot 0 is the whole image and always kept."""

    packed: UInt32[AnyArray, "n t w"]
    keep_prob: Float[AnyArray, "n t"]
    kept: Bool[AnyArray, "n t"]
    box: Int32[np.ndarray, "n t 4"]


def sign(logits: Float[AnyArray, "*b q"]) -> Int8[AnyArray, "*b q"]:
    """Returns the code of each row: +1 where the logit is not negative, -1 elsewhere."""
    return jnp.where(logits >= 0, 1, -1).astype(jnp.int8)


def num_words(num_bits: int) -> int:
    """Returns how many uint32 words hold a code."""
    return -(-num_bits // 32)


def _shifts(shape: tuple[int, ...]) -> Array:
    return jax.lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)


def pack(codes: Int8[AnyArray, "*b q"]) -> UInt32[AnyArray, "*b w"]:
    """Returns codes as uint32 words, least significant bit first, +1 as 1."""
    *batch, num_bits = codes.shape
    words = num_words(num_bits)
    bits = jnp.zeros((*batch, words * 32), jnp.uint32)
    bits = bits.at[..., :num_bits].set((codes > 0).astype(jnp.uint32))
    bits = bits.reshape(*batch, words, 32)
    return jnp.sum(bits << _shifts(bits.shape), -1, dtype=jnp.uint32)


def unpack(packed: UInt32[AnyArray, "*b w"], num_bits: int) -> Int8[AnyArray, "*b q"]:
    """Returns the int8 codes in {-1, +1} that `pack` made the words from."""
    bits = (packed[..., None] >> _shifts((*packed.shape, 32))) & jnp.uint32(1)
    bits = bits.reshape(*packed.shape[:-1], -1)[..., :num_bits]
    return jnp.where(bits == 1, 1, -1).astype(jnp.int8)


def hamming_distance(
    a: UInt32[AnyArray, "*a w"], b: UInt32[AnyArray, "*b w"]
) -> Int32[AnyArray, "*c"]:
    """Returns the Hamming distance in bits between packed codes; the leading axes broadcast."""
    # Word by word: a sum over a short last axis does not vectorise on the CPU.
    distances = [
        jax.lax.population_count(a[..., i] ^ b[..., i]).astype(jnp.int32)
        for i in range(a.shape[-1])
    ]
    return sum(distances[1:], distances[0])


def distance_to(
    code: UInt32[AnyArray, " w"], packed: UInt32[AnyArray, "w n"]
) -> Int32[AnyArray, " n"]:
    """Returns the Hamming distance in bits from one code to each of many, which come last.

    Word by word along memory: in any other order the CPU does not make it a loop of vectors.
    """
    bits = [jax.lax.population_count(words ^ one) for words, one in zip(packed, code, strict=True)]
    return functools.reduce(jnp.add, bits).astype(jnp.int32)


def counts_by_scatter(
    bins: Int32[AnyArray, " n"], weight: Int32[AnyArray, " n"], num_bins: int
) -> Int32[Array, " bins"]:
    """Returns the sum of the weights in each bin, one addition after the other."""
    return jnp.zeros(num_bins, jnp.int32).at[bins].add(weight)


def counts_by_reduction(
    bins: Int32[AnyArray, " n"], weight: Int32[AnyArray, " n"], num_bins: int
) -> Int32[Array, " bins"]:
    """Returns the sum of the weights in each bin, as a sum over a row of comparisons for each bin.

    Many operations, but all of them parallel, and fused: nothing is written to memory.
    """
    inside = bins[None, :] == jnp.arange(num_bins)[:, None]
    return jnp.sum(jnp.where(inside, weight[None, :], 0), 1, dtype=jnp.int32)


def weighted_counts(
    bins: Int32[AnyArray, " n"], weight: Int32[AnyArray, " n"], num_bins: int
) -> Int32[Array, " bins"]:
    """Returns the sum of the weights in each bin, by the form that suits the device.

    An accelerator would wait for the atomic additions of a scatter; a CPU is many times slower
    with a comparison for each bin.
    """
    return jax.lax.platform_dependent(
        bins,
        weight,
        cpu=functools.partial(counts_by_scatter, num_bins=num_bins),
        default=functools.partial(counts_by_reduction, num_bins=num_bins),
    )


def to_bytes(packed: UInt32[np.ndarray, "*b w"], num_bits: int) -> UInt8[np.ndarray, "*b bytes"]:
    """Returns packed codes as the bytes of a codes file, ceil(q / 8) a code."""
    words = np.ascontiguousarray(packed, dtype="<u4")
    return words.view(np.uint8)[..., : -(-num_bits // 8)].copy()


def from_bytes(codes: UInt8[np.ndarray, "*b bytes"], num_bits: int) -> UInt32[np.ndarray, "*b w"]:
    """Returns the packed words of codes as they lie in a codes file."""
    padded = np.zeros((*codes.shape[:-1], num_words(num_bits) * 4), np.uint8)
    padded[..., : codes.shape[-1]] = codes
    return padded.view("<u4").astype(np.uint32)


def first_of_equals(
    packed: UInt32[AnyArray, "n t w"], kept: Bool[AnyArray, "n t"]
) -> Bool[AnyArray, "n t"]:
    """Returns `kept` without the codes that an earlier kept code of the same image equals."""
    equal = jnp.all(packed[:, :, None] == packed[:, None, :], -1)  # [n, t, t]
    earlier = jnp.tril(jnp.ones(equal.shape[1:], bool), -1)
    return kept & ~jnp.any(equal & earlier[None] & kept[:, None, :], -1)


def flatten(code_set: CodeSet, ids: np.ndarray, labels: np.ndarray, num_bits: int) -> CodeFile:
    """Returns the kept codes as a flat list, an image's equal codes once."""
    kept = np.asarray(first_of_equals(jnp.asarray(code_set.packed), jnp.asarray(code_set.kept)))
    item, slot = np.nonzero(kept)
    return CodeFile(
        codes=to_bytes(np.asarray(code_set.packed)[item, slot], num_bits),
        item=item.astype(np.int64),
        ids=np.asarray(ids).astype(np.str_),
        keep_prob=np.asarray(code_set.keep_prob)[item, slot].astype(np.float32),
        box=code_set.box[item, slot].astype(np.int32),
        labels=np.asarray(labels, np.uint8),
        num_bits=num_bits,
    )


def by_number(
    file: CodeFile,
) -> Iterator[tuple[Int[np.ndarray, " k"], UInt32[np.ndarray, "t w k"]]]:
    """Yields the items with one code, those with two, and so on, with packed codes, items last.

    Padding all of them to the largest number would take up to t times the memory and work.
    """
    counts = np.bincount(file.item, minlength=len(file.ids))
    starts = np.cumsum(counts) - counts
    words = from_bytes(file.codes, file.num_bits).T
    for number in np.unique(counts[counts > 0]):
        items = np.flatnonzero(counts == number)
        rows = starts[items][None] + np.arange(number)[:, None]
        yield items, np.ascontiguousarray(words[:, rows].swapaxes(0, 1))
