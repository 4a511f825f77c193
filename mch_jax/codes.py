"""Binary codes: signs, packed words, popcount distances, and sets of codes at a fixed width.

A code of q bits is an int8 vector in {-1, +1}. Packed, it is ceil(q / 32) uint32 words, least
significant bit first, with +1 stored as 1 and zeros as padding. The bytes of a codes file are the
bytes of these words, cut to ceil(q / 8).
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int8, Int32, UInt8, UInt32

if TYPE_CHECKING:  # a type checker cannot tell which of the two a call returns
    AnyArray = Any
else:
    AnyArray = Array | np.ndarray  # an array on the device or on the host


class Encoding(NamedTuple):
    """The outputs of a base hashing model for a batch of images.

    Attributes:
      features: Activations of fc7 after ReLU.
      logits: Logits of the hash layer. Their signs are the code.
      label_logits: Logits of the label head, of width zero for a model without one.
    """

    features: Float[AnyArray, "b d"]
    logits: Float[AnyArray, "b q"]
    label_logits: Float[AnyArray, "b c"]


class CodeSet(NamedTuple):
    """Several codes per image, padded to the same number of slots.

    Slot 0 is the whole image and always kept.

    Attributes:
      packed: Packed codes.
      keep_prob: The policy's probability of keeping each code.
      kept: Whether each code is kept.
      box: Left, top, right and bottom of the region of each code, in pixels of the original image.
    """

    packed: UInt32[AnyArray, "n t w"]
    keep_prob: Float[AnyArray, "n t"]
    kept: Bool[AnyArray, "n t"]
    box: Int32[np.ndarray, "n t 4"]


def sign(logits: Float[AnyArray, "*b q"]) -> Int8[AnyArray, "*b q"]:
    """Returns the codes of logits: +1 where a logit is not negative, -1 elsewhere."""
    return jnp.where(logits >= 0, 1, -1).astype(jnp.int8)


def num_words(num_bits: int) -> int:
    """Returns the number of uint32 words in a packed code."""
    return -(-num_bits // 32)


def _shifts(shape: tuple[Any, ...]) -> Array:  # of integers or symbolic dimensions
    return jax.lax.broadcasted_iota(jnp.uint32, shape, len(shape) - 1)


def pack(codes: Int8[AnyArray, "*b q"]) -> UInt32[AnyArray, "*b w"]:
    """Returns codes as uint32 words, least significant bit first, with +1 as 1."""
    *batch, num_bits = codes.shape
    words = num_words(num_bits)
    bits = jnp.zeros((*batch, words * 32), jnp.uint32)
    bits = bits.at[..., :num_bits].set((codes > 0).astype(jnp.uint32))
    bits = bits.reshape(*batch, words, 32)
    return jnp.sum(bits << _shifts(bits.shape), -1, dtype=jnp.uint32)


def unpack(packed: UInt32[AnyArray, "*b w"], num_bits: int) -> Int8[AnyArray, "*b q"]:
    """Returns packed codes as int8 codes in {-1, +1}. Inverse of `pack`."""
    bits = (packed[..., None] >> _shifts((*packed.shape, 32))) & jnp.uint32(1)
    bits = bits.reshape(*packed.shape[:-1], -1)[..., :num_bits]
    return jnp.where(bits == 1, 1, -1).astype(jnp.int8)


def hamming_distance(
    a: UInt32[AnyArray, "*a w"], b: UInt32[AnyArray, "*b w"]
) -> Int32[AnyArray, "*c"]:
    """Returns the Hamming distance in bits between packed codes. The leading axes broadcast."""
    # A sum over the short last axis would not be vectorised on a CPU.
    distances = [
        jax.lax.population_count(a[..., i] ^ b[..., i]).astype(jnp.int32)
        for i in range(a.shape[-1])
    ]
    return sum(distances[1:], distances[0])


def distance_to(
    code: UInt32[AnyArray, " w"], packed: UInt32[AnyArray, "w n"]
) -> Int32[AnyArray, " n"]:
    """Returns the Hamming distance in bits from one code to each of many.

    The many codes are on the last axis, because only then does XLA vectorise the loop on a CPU.

    Args:
      code: One packed code.
      packed: n packed codes, word by word.
    """
    bits = [jax.lax.population_count(words ^ one) for words, one in zip(packed, code, strict=True)]
    return functools.reduce(jnp.add, bits).astype(jnp.int32)


def counts_by_scatter(
    bins: Int32[AnyArray, " n"], weight: Int32[AnyArray, " n"], num_bins: int
) -> Int32[Array, " bins"]:
    """Returns the sum of the weights in each bin, by scattered additions."""
    return jnp.zeros(num_bins, jnp.int32).at[bins].add(weight)


def counts_by_reduction(
    bins: Int32[AnyArray, " n"], weight: Int32[AnyArray, " n"], num_bins: int
) -> Int32[Array, " bins"]:
    """Returns the sum of the weights in each bin, by comparing every element with every bin.

    The operations are parallel and fused, so that no intermediate result is written to memory.
    """
    inside = bins[None, :] == jnp.arange(num_bins)[:, None]
    return jnp.sum(jnp.where(inside, weight[None, :], 0), 1, dtype=jnp.int32)


def weighted_counts(
    bins: Int32[AnyArray, " n"], weight: Int32[AnyArray, " n"], num_bins: int
) -> Int32[Array, " bins"]:
    """Returns the sum of the weights in each bin, by the faster method for the device.

    A scatter is slow on an accelerator, which must serialise its atomic additions. Comparing with
    every bin is many times slower on a CPU.

    Args:
      bins: The bin of each element.
      weight: The weight of each element.
      num_bins: Number of bins.
    """
    return jax.lax.platform_dependent(
        bins,
        weight,
        cpu=functools.partial(counts_by_scatter, num_bins=num_bins),
        default=functools.partial(counts_by_reduction, num_bins=num_bins),
    )


def to_bytes(packed: UInt32[np.ndarray, "*b w"], num_bits: int) -> UInt8[np.ndarray, "*b bytes"]:
    """Returns packed codes as the bytes of a codes file, ceil(q / 8) per code."""
    words = np.ascontiguousarray(packed, dtype="<u4")
    return words.view(np.uint8)[..., : -(-num_bits // 8)].copy()


def from_bytes(codes: UInt8[np.ndarray, "*b bytes"], num_bits: int) -> UInt32[np.ndarray, "*b w"]:
    """Returns the codes of a codes file as uint32 words. Inverse of `to_bytes`."""
    padded = np.zeros((*codes.shape[:-1], num_words(num_bits) * 4), np.uint8)
    padded[..., : codes.shape[-1]] = codes
    return padded.view("<u4").astype(np.uint32)


def first_of_equals(
    packed: UInt32[AnyArray, "n t w"], kept: Bool[AnyArray, "n t"]
) -> Bool[AnyArray, "n t"]:
    """Returns `kept` without codes that are equal to an earlier kept code of the same image."""
    equal = jnp.all(packed[:, :, None] == packed[:, None, :], -1)  # [n, t, t]
    earlier = jnp.tril(jnp.ones(equal.shape[1:], bool), -1)
    return kept & ~jnp.any(equal & earlier[None] & kept[:, None, :], -1)
