"""Rivals of the agent: other ways to give an image several codes, without a policy.

Each is a function of what the base model computes for the regions of the database's images. It
returns which regions' codes to keep, or other codes. All but `always` and `expected_reward` keep as
many codes per image as they are told, which is the agent's number in the comparison.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from mch_jax import codes
from mch_jax.agent import evidence

_PHOTOS = 8  # images that are compared with the reference at a time


def distinct(packed: UInt32[np.ndarray, "n t w"]) -> Bool[np.ndarray, "n t"]:
    """Returns True for each code that is not equal to an earlier code of its image."""
    every = jnp.ones(packed.shape[:2], bool)
    return np.asarray(codes.first_of_equals(jnp.asarray(packed), every))


def best(
    scores: Float[np.ndarray, "n t"],
    candidates: Bool[np.ndarray, "n t"],
    counts: Int[np.ndarray, " n"],
) -> Bool[np.ndarray, "n t"]:
    """Returns the whole image's code and the regions with the highest scores, `counts` in all."""
    ordered = np.where(candidates, scores, -np.inf)
    ordered[:, 0] = np.inf
    rank = np.argsort(np.argsort(-ordered, 1, kind="stable"), 1)
    return (rank < counts[:, None]) & (candidates | (rank == 0))


def surest(
    logits: Float[np.ndarray, "n t q"],
    candidates: Bool[np.ndarray, "n t"],
    counts: Int[np.ndarray, " n"],
) -> Bool[np.ndarray, "n t"]:
    """Returns the regions whose bits are the most certain, by their mean |logit|.

    The margin of a bit as the certainty of a code: Lv et al., "Multi-Probe LSH", VLDB 2007, which
    uses it for the query.
    """
    return best(np.abs(logits).mean(-1), candidates, counts)


def surest_labels(
    label_logits: Float[np.ndarray, "n t c"],
    candidates: Bool[np.ndarray, "n t"],
    counts: Int[np.ndarray, " n"],
) -> Bool[np.ndarray, "n t"]:
    """Returns the regions with the highest probability of any label.

    The maximum probability as the certainty of a prediction: Hendrycks and Gimpel, ICLR 2017.
    """
    return best(label_logits.max(-1), candidates, counts)


def random(
    rng: np.random.Generator, candidates: Bool[np.ndarray, "n t"], counts: Int[np.ndarray, " n"]
) -> Bool[np.ndarray, "n t"]:
    """Returns regions drawn at random, for each image as many as the agent keeps."""
    return best(rng.random(candidates.shape), candidates, counts)


def medoid(
    packed: UInt32[np.ndarray, "n t w"],
    candidates: Bool[np.ndarray, "n t"],
    counts: Int[np.ndarray, " n"],
) -> Bool[np.ndarray, "n t"]:
    """Returns the regions whose codes represent those of all regions best, chosen greedily.

    Each step adds the region that most reduces the sum of the distances from every region's code to
    the nearest code kept: the first phase (BUILD) of k-medoids, Kaufman and Rousseeuw, 1987.
    """
    between = _distances(packed)

    def gain(nearest):
        return np.maximum(nearest[:, :, None] - between, 0).sum(1)

    return _greedy(between, candidates, counts, gain)


def coverage(
    packed: UInt32[np.ndarray, "n t w"],
    candidates: Bool[np.ndarray, "n t"],
    counts: Int[np.ndarray, " n"],
) -> Bool[np.ndarray, "n t"]:
    """Returns the regions whose codes are farthest from those kept, chosen greedily.

    Farthest-first traversal for the k-centre problem: Gonzalez, 1985.
    """
    return _greedy(_distances(packed), candidates, counts, lambda nearest: nearest)


def _distances(packed: np.ndarray) -> Int[np.ndarray, "n t t"]:
    differing = packed[:, :, None] ^ packed[:, None, :]
    return np.bitwise_count(differing).sum(-1, dtype=np.int64)


def _greedy(between, candidates, counts, gain) -> Bool[np.ndarray, "n t"]:
    """Returns the codes kept by adding the one with the largest gain until there are `counts`."""
    rows = np.arange(len(candidates))
    kept = np.zeros(candidates.shape, bool)
    kept[:, 0] = True
    nearest = between[:, 0].copy()
    for _ in range(candidates.shape[1] - 1):
        score = np.where(candidates & ~kept, gain(nearest), -1)
        chosen = score.argmax(1)
        more = (kept.sum(1) < counts) & (score[rows, chosen] >= 0)
        kept[rows[more], chosen[more]] = True
        nearest[more] = np.minimum(nearest[more], between[rows[more], chosen[more]])
    return kept


def spill(
    code: UInt8[np.ndarray, "n bytes"],
    logits: Float[np.ndarray, "n q"],
    counts: Int[np.ndarray, " n"],
) -> tuple[UInt8[np.ndarray, "c bytes"], Int[np.ndarray, " c"]]:
    """Returns the whole image's code and those of the cheapest buckets around it, no regions.

    An item near the border of its bucket is stored on both sides, as in spill trees (Liu et al.,
    NIPS 2004). The buckets are those that GQR would look at first for the image as a query.

    Args:
      code: Codes of the whole images.
      logits: Their logits.
      counts: Number of codes of each image, at least 1.

    Returns:
      The codes as a flat list, the image's own first, and the item of each.
    """
    num_bits, most = logits.shape[1], int(counts.max(initial=1))
    # With k codes wanted, a flip beyond the k - 1 smallest margins cannot be among the cheapest.
    width = min(max(most - 1, 1), num_bits)
    margin = np.abs(logits)
    bits = np.argsort(margin, 1, kind="stable")[:, :width]
    subsets = (np.arange(1 << width)[:, None] >> np.arange(width)) & 1
    cost = np.take_along_axis(margin, bits, 1).astype(np.float64) @ subsets.T
    order = np.argsort(cost, 1, kind="stable")[:, :most]
    counts = np.minimum(counts, order.shape[1])
    item = np.repeat(np.arange(len(code)), counts)
    slot = np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)
    flips = np.zeros((len(item), num_bits), np.uint8)
    np.put_along_axis(flips, bits[item], subsets[order[item, slot]].astype(np.uint8), 1)
    return code[item] ^ np.packbits(flips, axis=1, bitorder="little"), item


def expected_reward(
    packed: UInt32[np.ndarray, "n t w"],
    label_logits: Float[np.ndarray, "n t c"],
    calibration: Mapping[str, Any],
    reference: evidence.Reference,
) -> Bool[np.ndarray, "n t"]:
    """Returns sets of regions chosen greedily by expected reward, without a policy.

    Each step adds the region with the largest expected gain under the posterior over the image's
    labels, given the codes kept so far, while there is one above 0. Greedy choice of a set:
    Nemhauser, Wolsey and Fisher, 1978.

    Args:
      packed: Packed codes of the regions.
      label_logits: Logits of the label head.
      calibration: Calibration of the posterior, from an encoder that was trained on evidence.
      reference: Photos to measure expected rewards against, from the same encoder.
    """
    choose = functools.partial(_expected_reward, calibration, reference)
    parts = [
        np.asarray(choose(packed[first : first + 256], label_logits[first : first + 256]))
        for first in range(0, len(packed), 256)
    ]
    return np.concatenate(parts)


@jax.jit
def _expected_reward(
    calibration: Mapping[str, Array],
    reference: evidence.Reference,
    packed: UInt32[Array, "b t w"],
    label_logits: Float[Array, "b t c"],
) -> Bool[Array, "b t"]:
    posterior = evidence.posterior(calibration, label_logits)
    similarity = evidence.similarity_probability(posterior, jnp.asarray(reference.labels))
    tables = jnp.asarray(reference.values)
    own = jnp.arange(len(tables))

    def one(photo):
        packed, similarity = photo
        distance = codes.hamming_distance(packed[:, None], jnp.asarray(reference.packed)[None])
        value = tables[:, 1] * similarity[:, None] + tables[:, 0] * (1 - similarity)[:, None]

        def step(state, _):
            kept, nearest = state
            nearer = jnp.minimum(distance, nearest[None])
            gain = jnp.mean(value[own[None], nearer] - value[own, nearest][None], 1)
            chosen = jnp.argmax(gain)
            more = gain[chosen] > 0
            kept = kept.at[chosen].set(kept[chosen] | more)
            return (kept, jnp.where(more, nearer[chosen], nearest)), None

        start = (jnp.arange(len(packed)) == 0, distance[0])
        (kept, _), _ = jax.lax.scan(step, start, None, len(packed) - 1)
        return kept

    return jax.lax.map(one, (packed, similarity), batch_size=_PHOTOS)
