"""Pairs of images: similarity, relaxed and binary distances, and how pairs are weighted.

Distances are in bits. Eq. numbers are those of "Multiple Code Hashing for Efficient Image
Retrieval" (Li et al., arXiv 2008.01503).
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int8, ScalarLike, UInt8, UInt32

AnyArray = Array | np.ndarray  # on the device or on the host
_BLOCK = 1024  # rows of labels compared at a time on the host


def pack_labels(labels: UInt8[np.ndarray, "n c"]) -> UInt32[np.ndarray, "n lw"]:
    """Returns multi-hot labels as words: bit c % 32 of word c // 32 is class c."""
    num_words = -(-labels.shape[1] // 32)
    padded = np.zeros((len(labels), 32 * num_words), np.uint8)
    padded[:, : labels.shape[1]] = labels
    packed = np.packbits(padded, axis=1, bitorder="little")
    return packed.view("<u4").astype(np.uint32, copy=False)


def unpack_labels(packed: UInt32[AnyArray, "n lw"], num_classes: int) -> Float[AnyArray, "n c"]:
    """Returns the multi-hot labels that `pack_labels` made the words from."""
    shifts = jnp.arange(32, dtype=jnp.uint32)[None, None]
    bits = (jnp.asarray(packed)[..., None] >> shifts) & jnp.uint32(1)
    return bits.reshape(len(packed), -1)[:, :num_classes].astype(jnp.float32)


def similarity(
    labels_a: UInt32[AnyArray, "b lw"], labels_b: UInt32[AnyArray, "n lw"]
) -> Bool[AnyArray, "b n"]:
    """Returns whether two images share a label; an image without labels is similar to none."""
    return jnp.any(labels_a[:, None, :] & labels_b[None, :, :], axis=-1)


def shares_label(
    label: UInt32[AnyArray, " lw"], labels: UInt32[AnyArray, "lw n"]
) -> Bool[AnyArray, " n"]:
    """Returns whether one image shares a label with each of many, which come last.

    Row by row: slices of one array of all rows would keep the CPU from a loop of vectors.
    """
    shared = [words & one for words, one in zip(labels, label, strict=True)]
    return functools.reduce(jnp.bitwise_or, shared) != 0


def similar_fraction(labels: UInt32[np.ndarray, "n lw"]) -> float:
    """Returns the exact share of similar pairs among the pairs i != j of a set.

    Computed on the host over distinct label sets and their counts.

    Raises:
      ValueError: if there are fewer than two images, hence no pair.
    """
    if len(labels) < 2:
        raise ValueError(f"labels: got {len(labels)} image(s), expected at least 2 to form a pair")
    distinct, counts = np.unique(labels, axis=0, return_counts=True)
    similar = 0
    for start in range(0, len(distinct), _BLOCK):
        rows = distinct[start : start + _BLOCK]
        shares = (rows[:, None, :] & distinct[None, :, :]).any(axis=-1)
        similar += int(counts[start : start + _BLOCK] @ (shares @ counts))
    similar -= int(labels.any(axis=1).sum())  # the pairs of an image with itself
    return similar / (len(labels) * (len(labels) - 1))


def relaxed_distance(
    relaxed_a: Float[AnyArray, "b q"], relaxed_b: Float[AnyArray, "n q"]
) -> Float[AnyArray, "b n"]:
    """Returns (q - <a, b>) / 2, which is the Hamming distance where both are codes (Eq. 1)."""
    return 0.5 * (relaxed_a.shape[-1] - relaxed_a @ relaxed_b.T)


def min_distance(
    codes: Int8[AnyArray, "b q"],
    region_codes: Int8[AnyArray, "b q"],
    train_codes: Int8[AnyArray, "n q"],
) -> Float[AnyArray, "b n"]:
    """Returns the distance from each image to each training code, with its region kept.

    Implements Eq. 5: the smaller of the image's and the region's Hamming distance.

    Args:
      codes: codes of the whole images.
      region_codes: codes of one region of each image, in the same order.
      train_codes: codes of the training set.

    Returns:
      Distances in bits, between 0 and q.
    """
    train = train_codes.astype(jnp.float32)
    return jnp.minimum(
        relaxed_distance(codes.astype(jnp.float32), train),
        relaxed_distance(region_codes.astype(jnp.float32), train),
    )


def balanced_weight(
    similar: Bool[AnyArray, "*s"], similar_fraction: ScalarLike
) -> Float[AnyArray, "*s"]:
    """Returns |S| / |S1| for similar pairs and |S| / |S0| for dissimilar ones.

    Both kinds then weigh the same in a mean over pairs. The fraction is the training set's, not the
    batch's, so that weights differ neither between batches nor between numbers of devices. It is
    kept off 0 and 1: a kind of pair that does not occur has a finite weight.
    """
    fraction = jnp.clip(similar_fraction, 1e-6, 1 - 1e-6)
    return jnp.where(similar, 1 / fraction, 1 / (1 - fraction))


def unit_weight(
    similar: Bool[AnyArray, "*s"], similar_fraction: ScalarLike
) -> Float[AnyArray, "*s"]:
    """Returns 1 for every pair."""
    del similar_fraction
    return jnp.ones(similar.shape)
