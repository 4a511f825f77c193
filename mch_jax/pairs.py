"""Pairs of images: their similarity, their relaxed distance and their weight in a loss.

Distances are in bits. Eq. numbers are those of "Multiple Code Hashing for Efficient Image
Retrieval" (Li et al., arXiv 2008.01503).
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, ScalarLike, UInt8, UInt32

from mch_jax.codes import AnyArray

_BLOCK = 1024  # rows of labels that are compared at a time on the host


def pack_labels(labels: UInt8[np.ndarray, "n c"]) -> UInt32[np.ndarray, "n lw"]:
    """Returns multi-hot labels as packed words: bit c % 32 of word c // 32 is class c."""
    num_words = -(-labels.shape[1] // 32)
    padded = np.zeros((len(labels), 32 * num_words), np.uint8)
    padded[:, : labels.shape[1]] = labels
    packed = np.packbits(padded, axis=1, bitorder="little")
    return packed.view("<u4").astype(np.uint32, copy=False)


def unpack_labels(packed: UInt32[AnyArray, "n lw"], num_classes: int) -> Float[AnyArray, "n c"]:
    """Returns the multi-hot labels of packed words, the inverse of `pack_labels`."""
    shifts = jnp.arange(32, dtype=jnp.uint32)[None, None]
    bits = (jnp.asarray(packed)[..., None] >> shifts) & jnp.uint32(1)
    return bits.reshape(len(packed), -1)[:, :num_classes].astype(jnp.float32)


def similarity(
    labels_a: UInt32[AnyArray, "b lw"], labels_b: UInt32[AnyArray, "n lw"]
) -> Bool[AnyArray, "b n"]:
    """Returns True for each pair that shares a label.

    An image without labels is similar to none, itself included.
    """
    return jnp.any(labels_a[:, None, :] & labels_b[None, :, :], axis=-1)


def shares_label(
    label: UInt32[AnyArray, " lw"], labels: UInt32[AnyArray, "lw n"]
) -> Bool[AnyArray, " n"]:
    """Returns True for each of n images that shares a label with one image.

    Works word by word: slices of one array of all words would keep XLA from vectorising on the CPU.

    Args:
      label: Packed labels of the one image.
      labels: Packed labels of the n images, items last.
    """
    shared = [words & one for words, one in zip(labels, label, strict=True)]
    return functools.reduce(jnp.bitwise_or, shared) != 0


def similar_fraction(labels: UInt32[np.ndarray, "n lw"]) -> float:
    """Returns the exact fraction of similar pairs among all pairs i != j of a set.

    It is computed on the host from the distinct label sets and their counts.

    Raises:
      ValueError: There are fewer than two images, hence no pair.
    """
    if len(labels) < 2:
        raise ValueError(f"labels: got {len(labels)} image(s), expected at least 2 to form a pair")
    distinct, counts = np.unique(labels, axis=0, return_counts=True)
    similar = 0
    for start in range(0, len(distinct), _BLOCK):
        rows = distinct[start : start + _BLOCK]
        shares = (rows[:, None, :] & distinct[None, :, :]).any(axis=-1)
        similar += int(counts[start : start + _BLOCK] @ (shares @ counts))
    similar -= int(labels.any(axis=1).sum())  # pairs of an image with itself
    return similar / (len(labels) * (len(labels) - 1))


def relaxed_distance(
    relaxed_a: Float[AnyArray, "b q"], relaxed_b: Float[AnyArray, "n q"]
) -> Float[AnyArray, "b n"]:
    """Returns (q - <a, b>) / 2 in bits, which for codes is the Hamming distance (Eq. 1)."""
    return 0.5 * (relaxed_a.shape[-1] - relaxed_a @ relaxed_b.T)


def balanced_weight(
    similar: Bool[AnyArray, "*s"], similar_fraction: ScalarLike
) -> Float[AnyArray, "*s"]:
    """Returns |S| / |S1| for similar pairs and |S| / |S0| for dissimilar pairs.

    Similar and dissimilar pairs then have the same total weight in a mean over pairs.

    Args:
      similar: True for each similar pair.
      similar_fraction: Fraction of similar pairs in the training set. The fraction of the batch
        would make weights depend on the batch and on the number of devices. It is clipped to stay
        away from 0 and 1, so that a kind of pair that does not occur has a finite weight.
    """
    fraction = jnp.clip(similar_fraction, 1e-6, 1 - 1e-6)
    return jnp.where(similar, 1 / fraction, 1 / (1 - fraction))


def unit_weight(
    similar: Bool[AnyArray, "*s"], similar_fraction: ScalarLike
) -> Float[AnyArray, "*s"]:
    """Returns 1 for every pair."""
    del similar_fraction
    return jnp.ones(similar.shape)
