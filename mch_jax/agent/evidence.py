"""Evidence that a region's code is worth keeping, for photos whose labels are unknown.

The reward of keeping a code (Eq. 6) needs the photo's labels. Here it is expected instead: a label
head reads all regions of the photo, its posterior says how likely the photo is similar to each
reference photo, and a table of each reference photo says what one more item at a distance is worth.
The state that the agent sees is made of such expectations, counts and confidences. None of it
belongs to the axes of one base model, so an agent that learned from photos which cross-fitted bases
had not seen can serve the base that is deployed.

Everything is made from the photo, the base model and the training set.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, ScalarLike, UInt8, UInt32

from mch_jax import codes, metrics, pairs

AnyArray = Array | np.ndarray
EXPECTED = ("reward", "benefit", "cost", "reward_whole", "reward_sharp")
ABOUT_BOTH = ("bucket", "ball", "nearest", "margin", "sure", "labels", "entropy")
NAMES = (*EXPECTED, "apart", *(f"{x}{of}" for x in ABOUT_BOTH for of in ("_region", "")))
POSTERIOR_WIDTH = 5
_PHOTOS = 8  # at a time


class Reference(NamedTuple):
    """The photos that expected rewards are measured against.

    Attributes:
      packed: their codes.
      labels: multi-hot.
      values: worth of one more item at each distance from each, dissimilar and similar.
    """

    packed: UInt32[AnyArray, "n w"]
    labels: UInt8[AnyArray, "n c"]
    values: Float[AnyArray, "n 2 distances"]


def smooth_average_precision(histogram: Float[Array, "distances 2"]) -> Float[Array, ""]:
    """Returns a smooth form of average precision, from items per distance, by relevance.

    Relevant items of a ball are preceded by half of the others at their distance. The number of
    relevant items takes no gradient.
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
    """Returns what one more item at each distance is worth to each photo as a query.

    It is the derivative of average precision, plus that of recall within radius 0, times the number
    of items: values then do not depend on the set's size. It stands where Eq. 6 has minus the base
    loss, so that the reward is made of what is measured.

    Args:
      histogram: items per distance from each photo, itself left out, by relevance.
      recall_weight: of recall beside average precision.
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
    """Returns what expected rewards need of the photos to measure against."""
    words = pairs.pack_labels(labels)
    histogram = metrics.label_histogram(
        packed, metrics.items_last(packed[:, None]), words, np.ascontiguousarray(words.T), num_bits
    )
    histogram[:, 0, 1] -= words.any(1)  # itself, which is similar where there is any label
    histogram[:, 0, 0] -= ~words.any(1)
    return Reference(packed, labels, np.asarray(values(histogram, recall_weight)))


def gains(
    packed: UInt32[Array, "t w"], reference: Reference
) -> tuple[Float[Array, "regions n"], Float[Array, "regions n"]]:
    """Returns what keeping each region adds to each reference photo if dissimilar, if similar."""
    distance = codes.hamming_distance(packed[:, None], jnp.asarray(reference.packed)[None])
    nearer = jnp.minimum(distance[1:], distance[:1])
    tables = jnp.asarray(reference.values)
    first = jnp.arange(len(tables)) * tables.shape[2]
    dissimilar, similar = (
        table.ravel()[first[None] + nearer] - table.ravel()[first[None] + distance[:1]]
        for table in (tables[:, 0], tables[:, 1])
    )
    return dissimilar, similar


@jax.jit
def rewards(
    packed: UInt32[Array, "b t w"], similarity: Float[Array, "b n"], reference: Reference
) -> Float[Array, "b regions"]:
    """Returns the mean gain over reference photos of keeping each region alone.

    Args:
      packed: codes of the regions, the whole photo first.
      similarity: s_ij, or its probability for the expected reward.
      reference: what to measure against.
    """

    def one(photo):
        dissimilar, similar = gains(photo[0], reference)
        return (dissimilar @ (1 - photo[1]) + similar @ photo[1]) / similar.shape[1]

    return jax.lax.map(one, (packed, similarity), batch_size=_PHOTOS)


def posterior_features(label_logits: Float[Array, "b t c"]) -> Float[Array, "b c features"]:
    """Returns what the posterior is made of: whole, mean, the two largest, and a soft maximum."""
    crops = jnp.sort(label_logits[:, 1:], 1)
    soft = jax.nn.logsumexp(jnp.clip(label_logits, -12, 12), 1) - jnp.log(label_logits.shape[1])
    second = crops[:, max(crops.shape[1] - 2, 0)]
    parts = [label_logits[:, 0], crops.mean(1), crops[:, -1], second, soft]
    return jnp.stack(parts, -1)


def posterior(
    calibration: Mapping[str, Array], label_logits: Float[Array, "b t c"]
) -> Float[Array, "b c"]:
    """Returns the logits of a photo's labels given the label head's logits of all its regions."""
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
    """Returns the calibration, by logistic regression on photos unseen by the base model.

    One weight vector serves all classes, with a small deviation of each.
    """
    num_classes = labels.shape[1]
    params = {
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

    return jax.lax.scan(step, (params, tx.init(params)), None, num_steps)[0][0]


def similarity_probability(
    label_logits: Float[Array, "b c"], labels: UInt8[AnyArray, "n c"]
) -> Float[Array, "b n"]:
    """Returns the probability of a label in common: 1 - prod (1 - p_ic) over the labels c of j."""
    no_label = jax.nn.softplus(label_logits)  # -log(1 - p)
    return -jnp.expm1(-no_label @ jnp.asarray(labels, jnp.float32).T)


@jax.jit
def state(
    packed: UInt32[Array, "b t w"],
    logits: Float[Array, "b t q"],
    label_logits: Float[Array, "b t c"],
    calibration: Mapping[str, Array],
    reference: Reference,
) -> Float[Array, "b regions state"]:
    """Returns the state of each region, the whole photo's aside; columns are NAMES.

    Expected rewards under the posterior (with their parts from similar and dissimilar photos),
    under the whole photo's labels alone and under a sharpened posterior; bits between the region's
    code and the whole's; and of both: how full bucket and ball of radius 2 are, the nearest
    reference photo, the margin of the least sure bits, the surest label, the expected number of
    labels and their entropy.
    """
    probable = posterior(calibration, label_logits)
    similarity = jnp.stack(
        [
            similarity_probability(x, reference.labels)
            for x in (probable, label_logits[:, 0], 2 * probable)
        ],
        -1,
    )

    def one(photo):
        packed, similarity = photo
        dissimilar, similar = gains(packed, reference)
        num = similar.shape[1]
        benefit, cost = similar @ similarity / num, dissimilar @ (1 - similarity) / num
        distance = codes.hamming_distance(packed[:, None], jnp.asarray(reference.packed)[None])
        share = [jnp.log((distance <= radius).mean(-1) + 1e-4) for radius in (0, 2)]
        nearest = distance.min(-1).astype(jnp.float32)
        apart = codes.hamming_distance(packed[1:], packed[:1]).astype(jnp.float32)
        return benefit, cost, apart, jnp.stack([*share, nearest], -1)

    benefit, cost, apart, around = jax.lax.map(one, (packed, similarity), batch_size=_PHOTOS)
    total = benefit + cost
    margin = jnp.log(jnp.sort(jnp.abs(logits), -1)[..., :4].mean(-1) + 1e-3)
    prob = jax.nn.sigmoid(label_logits)
    entropy = jnp.sum(jax.nn.softplus(label_logits) - prob * label_logits, -1)
    columns = [total[..., 0], benefit[..., 0], cost[..., 0], total[..., 1], total[..., 2], apart]
    for x in (*jnp.moveaxis(around, -1, 0), margin, prob.max(-1), prob.sum(-1), entropy):
        columns += [x[:, 1:], jnp.broadcast_to(x[:, :1], x[:, 1:].shape)]
    return jnp.stack(columns, -1)


def normalizer(states: Float[AnyArray, "*m state"]) -> dict[str, Float[np.ndarray, " _"]]:
    """Returns what `normalize` needs, from the states of the photos that the agent learns from."""
    states = np.asarray(states).reshape(-1, len(NAMES))
    scale = states[:, : len(EXPECTED)].std(0) + 1e-12
    drawn = np.asarray(_draw_in(states, scale))
    return {"scale": scale, "mean": drawn.mean(0), "std": np.maximum(drawn.std(0), 1e-3)}


def _draw_in(states, scale):
    drawn = jnp.arcsinh(3 * states[..., : len(EXPECTED)] / scale)
    return jnp.concatenate([drawn, states[..., len(EXPECTED) :]], -1)


def normalize(
    statistics: Mapping[str, AnyArray], states: Float[AnyArray, "m state"]
) -> Float[Array, "m state"]:
    """Returns states with the rewards' heavy tails drawn in, then at mean 0 and deviation 1."""
    scale, mean, std = (jnp.asarray(statistics[x])[None] for x in ("scale", "mean", "std"))
    return (_draw_in(jnp.asarray(states), scale) - mean) / std
