"""Evidence that a region's code is worth keeping, for photos whose labels are unknown.

The reward of keeping a code (Eq. 6) needs the photo's labels. Here it is replaced by an
expectation: a label head reads all regions of the photo, a posterior over labels gives the
probability that the photo is similar to each reference photo, and a table of each reference photo
gives the value of one more item at each distance from it. The state that the policy sees consists
of such expectations, of counts and of confidences. It does not depend on the order or meaning of
the base model's feature dimensions and bits. A policy that learned from photos which cross-fitted
base models had not seen can therefore serve the deployed base model.

Everything is computed from the photo, the base model and the training set.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import export
from jaxtyping import Array, Bool, Float, Int, ScalarLike, UInt8, UInt32

from mch_jax import codes, histograms, pairs
from mch_jax.codes import AnyArray

EXPECTED = ("reward", "benefit", "cost", "reward_whole", "reward_sharp")
ABOUT_BOTH = ("bucket", "ball", "nearest", "margin", "sure", "labels", "entropy")
NAMES = (*EXPECTED, "apart", *(f"{x}{of}" for x in ABOUT_BOTH for of in ("_region", "")))
POSTERIOR_WIDTH = 5
_PHOTOS = 8  # photos that are compared with the reference at a time


class Reference(NamedTuple):
    """The photos that expected rewards are measured against.

    Attributes:
      packed: Packed code of each photo.
      labels: Multi-hot labels of each photo.
      values: Value of one more item at each distance from each photo, if the item is dissimilar
        (row 0) and if it is similar (row 1).
    """

    packed: UInt32[AnyArray, "n w"]
    labels: UInt8[AnyArray, "n c"]
    values: Float[AnyArray, "n 2 distances"]


def smooth_average_precision(histogram: Float[Array, "distances 2"]) -> Float[Array, ""]:
    """Returns a smooth form of the average precision of one query.

    Each relevant item of a ball counts as preceded by half of the other items at its distance. The
    number of relevant items takes no gradient.

    Args:
      histogram: Items at each distance, irrelevant ones in column 0, relevant ones in column 1.
    """
    relevant, size = histogram[:, 1], histogram.sum(-1)
    found = jnp.cumsum(relevant) - relevant / 2 + 0.5 * (relevant > 0)
    seen = jnp.cumsum(size) - size / 2 + 0.5
    total = jax.lax.stop_gradient(jnp.maximum(relevant.sum(), 1))
    return jnp.sum(relevant * found / seen) / total


@jax.jit
def values(
    histogram: Int[AnyArray, "n distances 2"], recall_weight: ScalarLike
) -> Float[Array, "n 2 distances"]:
    """Returns the value of one more item at each distance, for each photo as a query.

    The value is the derivative of average precision plus the weighted derivative of recall within
    radius 0, times the number of items, so that values do not depend on the size of the set. It
    takes the place of the negative base loss in Eq. 6: the reward then consists of what is
    measured.

    Args:
      histogram: Items at each distance from each photo by relevance, the photo itself left out.
      recall_weight: Weight of recall within radius 0, relative to average precision.
    """
    counts = jnp.asarray(histogram, jnp.float32)
    slope = jax.vmap(jax.grad(smooth_average_precision))(counts)
    recall = 1 / jnp.maximum(counts[:, :, 1].sum(1), 1)
    slope = slope.at[:, 0, 1].add(recall_weight * recall)
    return jnp.swapaxes(slope, 1, 2) * counts.sum((1, 2))[:, None, None]


def reference(
    packed: UInt32[np.ndarray, "n w"],
    labels: UInt8[np.ndarray, "n c"],
    num_bits: int,
    recall_weight: float,
) -> Reference:
    """Returns the photos to measure expected rewards against, with their tables of values.

    Args:
      packed: Packed code of each photo.
      labels: Multi-hot labels of each photo.
      num_bits: Code length q.
      recall_weight: Weight of recall within radius 0, as in `values`.
    """
    words = pairs.pack_labels(labels)
    histogram = histograms.label_histogram(
        packed,
        histograms.items_last(packed[:, None]),
        words,
        np.ascontiguousarray(words.T),
        num_bits,
    )
    # A photo is not an item of its own query; it is similar to itself where it has any label.
    histogram[:, 0, 1] -= words.any(1)
    histogram[:, 0, 0] -= ~words.any(1)
    return Reference(packed, labels, np.asarray(values(histogram, recall_weight)))


def only_whole(packed: UInt32[Array, "b t w"]) -> Bool[Array, "b t"]:
    """Returns the mask of the codes that every photo has without an agent: the whole photo's."""
    return jnp.broadcast_to(jnp.arange(packed.shape[1])[None] == 0, packed.shape[:2])


def _nearest_kept(distance: Int[Array, "t n"], kept: Bool[Array, " t"]) -> Int[Array, "1 n"]:
    """Returns the distance of the nearest kept code."""
    far = jnp.iinfo(distance.dtype).max
    return jnp.where(kept[:, None], distance, far).min(0, keepdims=True)


def gains(
    packed: UInt32[Array, "t w"], kept: Bool[Array, " t"], reference: Reference
) -> tuple[Float[Array, "regions n"], Float[Array, "regions n"]]:
    """Returns what keeping each region of one photo adds to each reference photo's measure.

    Args:
      packed: Packed codes of the photo's regions, the whole photo first.
      kept: Which codes the photo has already, the whole photo's among them.
      reference: Photos to measure against.

    Returns:
      The gains if the two photos are dissimilar, and the gains if they are similar.
    """
    distance = codes.hamming_distance(packed[:, None], jnp.asarray(reference.packed)[None])
    before = _nearest_kept(distance, kept)
    nearer = jnp.minimum(distance[1:], before)
    tables = jnp.asarray(reference.values)
    first = jnp.arange(len(tables)) * tables.shape[2]
    dissimilar, similar = (
        table.ravel()[first[None] + nearer] - table.ravel()[first[None] + before]
        for table in (tables[:, 0], tables[:, 1])
    )
    return dissimilar, similar


@jax.jit
def rewards(
    packed: UInt32[Array, "b t w"],
    similarity: Float[Array, "b n"],
    reference: Reference,
    kept: Bool[Array, "b t"] | None = None,
) -> Float[Array, "b regions"]:
    """Returns the mean gain over the reference photos of keeping each region, without the others.

    Args:
      packed: Packed codes of the regions, the whole photo first.
      similarity: Similarity s_ij, or its probability for an expected reward.
      reference: Photos to measure against.
      kept: Which codes each photo has already. Defaults to the whole photo's alone.
    """
    kept = only_whole(packed) if kept is None else kept

    def one(photo):
        packed, similarity, kept = photo
        dissimilar, similar = gains(packed, kept, reference)
        return (dissimilar @ (1 - similarity) + similar @ similarity) / similar.shape[1]

    return jax.lax.map(one, (packed, similarity, kept), batch_size=_PHOTOS)


def posterior_features(label_logits: Float[Array, "b t c"]) -> Float[Array, "b c features"]:
    """Returns the inputs of the posterior for each photo and label.

    They are the label logit of the whole photo, then of its crops the mean, the largest and the
    second largest, and last the logarithm of the mean exponential over all regions.
    """
    crops = jnp.sort(label_logits[:, 1:], 1)
    soft = jax.nn.logsumexp(jnp.clip(label_logits, -12, 12), 1) - jnp.log(label_logits.shape[1])
    second = crops[:, max(crops.shape[1] - 2, 0)]
    parts = [label_logits[:, 0], crops.mean(1), crops[:, -1], second, soft]
    return jnp.stack(parts, -1)


def posterior(
    calibration: Mapping[str, AnyArray], label_logits: Float[Array, "b t c"]
) -> Float[Array, "b c"]:
    """Returns logits of the probability that a photo has each label.

    Args:
      calibration: Result of `fit_posterior`.
      label_logits: Logits of the label head for all regions of the photos.
    """
    weight = calibration["shared"][None] + calibration["own"]
    x = posterior_features(label_logits)
    return jnp.sum(x * weight[None], -1) + calibration["bias"][None]


@functools.partial(jax.jit, static_argnames="num_steps")
def fit_posterior(
    label_logits: Float[Array, "b t c"],
    labels: UInt8[Array, "b c"],
    *,
    num_steps: int = 400,
    learning_rate: float = 0.03,
    decay: float = 0.03,
) -> dict[str, Array]:
    """Returns the calibration of the posterior, fitted by logistic regression.

    All labels share one weight vector, from which each label's own weights deviate slightly.

    Args:
      label_logits: Logits of the label head for the regions of photos that the base model has not
        seen.
      labels: Multi-hot labels of the photos.
      num_steps: Number of steps of Adam.
      learning_rate: Learning rate of the first step.
      decay: Weight of the squared deviations.
    """
    num_classes = labels.shape[1]
    params: Any = {
        "shared": jnp.array([0.5, 0.5, 0.0, 0.0, 0.0]),
        "own": jnp.zeros((num_classes, POSTERIOR_WIDTH)),
        "bias": jnp.zeros(num_classes),
    }
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

    def loss(params):
        entropy = optax.sigmoid_binary_cross_entropy(
            posterior(params, label_logits), labels.astype(jnp.float32)
        )
        return entropy.sum(1).mean() + decay * jnp.sum(params["own"] ** 2)

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), None, num_steps)
    return params


def similarity_probability(
    label_logits: Float[Array, "b c"], labels: UInt8[AnyArray, "n c"]
) -> Float[Array, "b n"]:
    """Returns the probability that two photos share a label.

    It is 1 - prod_c (1 - p_ic) over the labels c of photo j, with the labels of photo i taken as
    independent.

    Args:
      label_logits: Logits of the probabilities p_ic.
      labels: Multi-hot labels of the photos j.
    """
    no_label = jax.nn.softplus(label_logits)  # -log(1 - p)
    return -jnp.expm1(-no_label @ jnp.asarray(labels, jnp.float32).T)


@jax.jit
def states(
    packed: UInt32[Array, "b t w"],
    logits: Float[Array, "b t q"],
    label_logits: Float[Array, "b t c"],
    calibration: Mapping[str, Array],
    reference: Reference,
    kept: Bool[Array, "b t"] | None = None,
) -> Float[Array, "b regions state"]:
    """Returns the state of each region but the whole photo; its columns are `NAMES`.

    reward, benefit, cost      Expected reward under the posterior, and its parts from similar and
                               from dissimilar photos.
    reward_whole, reward_sharp Expected reward under the whole photo's labels alone, and under a
                               sharpened posterior.
    apart                      Bits in which the region's code differs from the nearest kept one.

    The others come twice, for the region and for the whole photo:

    bucket, ball               Logarithm of the share of reference photos within radius 0 and 2.
    nearest                    Distance to the nearest reference photo.
    margin                     Logarithm of the mean |logit| of the four least certain bits.
    sure, labels, entropy      Largest label probability, expected number of labels, and their
                               entropy.

    Args:
      packed: Packed codes of the regions, the whole photo first.
      logits: Logits of the hash layer.
      label_logits: Logits of the label head.
      calibration: Result of `fit_posterior`.
      reference: Photos to measure expected rewards against.
      kept: Which codes each photo has already. Defaults to the whole photo's alone.
    """
    kept = only_whole(packed) if kept is None else kept
    probable = posterior(calibration, label_logits)
    similarity = jnp.stack(
        [
            similarity_probability(x, reference.labels)
            for x in (probable, label_logits[:, 0], 2 * probable)
        ],
        -1,
    )

    def one(photo):
        packed, similarity, kept = photo
        dissimilar, similar = gains(packed, kept, reference)
        num = similar.shape[1]
        benefit, cost = similar @ similarity / num, dissimilar @ (1 - similarity) / num
        distance = codes.hamming_distance(packed[:, None], jnp.asarray(reference.packed)[None])
        share = [jnp.log((distance <= radius).mean(-1) + 1e-4) for radius in (0, 2)]
        nearest = distance.min(-1).astype(jnp.float32)
        between = codes.hamming_distance(packed[:, None], packed[None])
        apart = _nearest_kept(between, kept)[0, 1:].astype(jnp.float32)
        return benefit, cost, apart, jnp.stack([*share, nearest], -1)

    benefit, cost, apart, around = _map_photos(one, (packed, similarity, kept))
    total = benefit + cost
    margin = jnp.log(jnp.sort(jnp.abs(logits), -1)[..., :4].mean(-1) + 1e-3)
    prob = jax.nn.sigmoid(label_logits)
    entropy = jnp.sum(jax.nn.softplus(label_logits) - prob * label_logits, -1)
    columns = [total[..., 0], benefit[..., 0], cost[..., 0], total[..., 1], total[..., 2], apart]
    for x in (*jnp.moveaxis(around, -1, 0), margin, prob.max(-1), prob.sum(-1), entropy):
        columns += [x[:, 1:], jnp.broadcast_to(x[:, :1], x[:, 1:].shape)]
    return jnp.stack(columns, -1)


def _map_photos(one: Callable[[Any], Any], photos: tuple[Array, ...]) -> Any:
    """Returns the results of a function of one photo for each, several photos at a time.

    Where the number of photos is a symbolic dimension, of which JAX cannot tell whether it leaves
    a remainder, the last photo fills the last round.
    """
    count = photos[0].shape[0]
    last = count - 1
    if not export.is_symbolic_dim(count):
        return jax.lax.map(one, photos, batch_size=_PHOTOS)

    def several(number):
        rows = jnp.minimum(number * _PHOTOS + jnp.arange(_PHOTOS), last)
        return jax.vmap(one)(tuple(x[rows] for x in photos))

    rounds = jax.lax.map(several, jnp.arange((last + _PHOTOS) // _PHOTOS))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[jnp.arange(last + 1)], rounds)


def normalizer(states: Float[AnyArray, "*m state"]) -> dict[str, Float[np.ndarray, " _"]]:
    """Returns the statistics that `normalize` needs.

    Args:
      states: States of the photos that the agent learns from.
    """
    states = np.asarray(states).reshape(-1, len(NAMES))
    scale = states[:, : len(EXPECTED)].std(0) + 1e-12
    compressed = np.asarray(_compress_tails(states, scale))
    return {
        "scale": scale,
        "mean": compressed.mean(0),
        "std": np.maximum(compressed.std(0), 1e-3),
    }


def _compress_tails(states, scale):
    """Returns states whose expected rewards went through arcsinh, since their tails are heavy."""
    compressed = jnp.arcsinh(3 * states[..., : len(EXPECTED)] / scale)
    return jnp.concatenate([compressed, states[..., len(EXPECTED) :]], -1)


def normalize(
    statistics: Mapping[str, AnyArray], states: Float[AnyArray, "m state"]
) -> Float[Array, "m state"]:
    """Returns states with the tails of the expected rewards compressed, at mean 0 and deviation 1.

    Args:
      statistics: Result of `normalizer`.
      states: States of regions.
    """
    scale, mean, std = (jnp.asarray(statistics[x])[None] for x in ("scale", "mean", "std"))
    return (_compress_tails(jnp.asarray(states), scale) - mean) / std
