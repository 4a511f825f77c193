"""Losses that are not of pairs of images, against plain loops, and the centres of classes."""

import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import methods, pairs
from mch_jax.methods import base as losses
from mch_jax.methods.centres import class_centres, hadamard, majority, random_centres

CLASSES = 5


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    """Returns logits and labels of a batch; some images have one label, one has none."""
    rng = np.random.default_rng(0)
    labels = (rng.random((9, CLASSES)) < 0.4).astype(np.uint8)
    labels[0] = 0
    return rng.normal(size=(9, 12)), labels


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def found_loss(name: str, batch: tuple[np.ndarray, np.ndarray], **settings: float) -> float:
    """Returns the loss of pairs or of the batch, without the penalty."""
    logits, labels = batch
    model = methods.objective(name, logits.shape[1], **settings)
    own = model.parameters(CLASSES, np.random.default_rng(1)) if model.parameters else None
    _, parts = losses.base_loss(
        model, jnp.asarray(logits, jnp.float32), jnp.asarray(pairs.pack_labels(labels)),
        0.5, 0.3, num_classes=CLASSES, parameters=own,
    )  # fmt: skip
    return float(parts["pair_loss"])


def test_orthohash_is_the_cross_entropy_of_photos_and_centres(batch):
    logits, labels = batch
    centres, terms = class_centres(CLASSES, 12), []
    for u, own in zip(np.tanh(logits), labels, strict=True):
        for centre, has in zip(centres, own, strict=True):
            likely = 1 / (1 + np.exp(-8 * (cosine(u, centre) - 0.2 * has)))
            terms.append(-np.log(likely if has else 1 - likely))
    assert found_loss("orthohash", batch) == pytest.approx(np.mean(terms), rel=1e-5)


def test_hyp2_is_the_sum_of_three_means(batch):
    logits, labels = batch
    made = methods.objective("hyp2", 12, threshold=0.1).parameters
    assert made is not None
    proxies = made(CLASSES, np.random.default_rng(1))["proxies"]
    positive, negative, apart = [], [], []
    for i, (u, own) in enumerate(zip(logits, labels, strict=True)):
        for proxy, has in zip(proxies, own, strict=True):
            c = cosine(u, proxy)
            (positive if has else negative).append(1 - c if has else max(0, c - 0.1))
        for j, (v, other) in enumerate(zip(logits, labels, strict=True)):
            several = own.sum() > 1 and other.sum() > 1
            if i != j and several and not (own & other).any():
                apart.append(max(0, cosine(u, v) - 0.1))
    assert min(map(len, (positive, negative, apart))) > 1
    expected = np.mean(positive) + np.mean(negative) + 0.5 * np.mean(apart)
    assert found_loss("hyp2", batch, threshold=0.1) == pytest.approx(expected, rel=1e-5)


def plain_majority(labels: np.ndarray, centres: np.ndarray, tie: np.ndarray) -> np.ndarray:
    chosen = np.zeros((len(labels), centres.shape[1]))
    for i, own in enumerate(labels):
        for k in range(centres.shape[1]):
            votes = sum(centre[k] for centre, has in zip(centres, own, strict=True) if has)
            chosen[i, k] = np.sign(votes) or tie[k]
    return chosen


def drawn_centres(name: str) -> np.ndarray:
    if name == "csq":
        return class_centres(CLASSES, 12)
    return random_centres(CLASSES, 12, np.random.default_rng([12, CLASSES]))


@pytest.mark.parametrize("name", ["csq", "dpn"])
def test_losses_of_the_majority_centre(name, batch):
    logits, labels = batch
    centres = drawn_centres(name)
    tie = np.asarray(majority(jnp.zeros((1, CLASSES)), centres))[0]
    assert set(tie) == {-1.0, 1.0}
    terms = []
    for u, t in zip(logits, plain_majority(labels, centres, tie), strict=True):
        for k in range(12):
            likely = (1 + t[k] * np.tanh(u[k])) / 2
            terms.append(-np.log(likely) if name == "csq" else max(0, 1 - t[k] * u[k]))
    assert found_loss(name, batch) == pytest.approx(np.mean(terms), rel=1e-5)


def test_the_penalty_of_csq_is_the_squared_distance_to_a_bit():
    relaxed = jnp.array([[0.5, -1.0], [0.0, 0.9]])
    penalty = methods.objective("csq", 2, penalty_weight=2.0).penalty(jnp.sign(relaxed), relaxed)
    np.testing.assert_allclose(penalty, [0.25, 1.01], rtol=1e-6)


def plain_average_precision(distance: np.ndarray, relevant: np.ndarray, num_bits: int) -> float:
    """Returns the average precision of one query by soft histograms."""
    p, every = np.zeros(num_bits + 1), np.zeros(num_bits + 1)
    for d, is_relevant in zip(distance, relevant, strict=True):
        for k in range(num_bits + 1):
            weight = max(0, 1 - abs(d - k))
            every[k] += weight
            p[k] += weight * is_relevant
    total = 0.0
    for k in range(num_bits + 1):
        found, seen = p[:k].sum() + p[: k + 1].sum(), every[:k].sum() + every[: k + 1].sum()
        total += p[k] * (found + 1) / (seen + 1)
    return total / p.sum() if p.sum() else 0.0


def test_talr_is_the_average_precision_of_soft_histograms(batch):
    logits, labels = batch
    u, terms = np.tanh(logits), []
    for i in range(len(u)):
        others = [j for j in range(len(u)) if j != i]
        distance = np.array([(12 - u[i] @ u[j]) / 2 for j in others])
        relevant = np.array([bool((labels[i] & labels[j]).any()) for j in others])
        terms.append(plain_average_precision(distance, relevant, 12))
    assert terms[0] == 0  # the photo without labels
    assert found_loss("talr", batch) == pytest.approx(-np.mean(terms), rel=1e-5)


def test_talr_of_a_perfect_and_of_the_worst_ranking():
    codes = np.repeat([[4.0] * 8, [-4.0] * 8], 2, axis=0)
    best = found_loss("talr", (codes, np.eye(CLASSES, dtype=np.uint8)[[0, 0, 1, 1]]))
    worst = found_loss("talr", (codes, np.eye(CLASSES, dtype=np.uint8)[[0, 1, 0, 1]]))
    assert best == pytest.approx(-1, abs=0.01)
    assert worst > -0.6


@pytest.mark.parametrize(("num_classes", "num_bits"), [(18, 32), (16, 16), (21, 64), (2, 1)])
def test_hadamard_centres_are_orthogonal_or_opposite(num_classes, num_bits):
    centres = class_centres(num_classes, num_bits)
    assert centres.shape == (num_classes, num_bits)
    products = centres @ centres.T - num_bits * np.eye(num_classes)
    assert np.isin(products, (0, -num_bits)).all()
    assert (products == 0).all() or num_classes > num_bits
    np.testing.assert_array_equal(centres, class_centres(num_classes, num_bits))


@pytest.mark.parametrize(("num_classes", "num_bits"), [(18, 48), (80, 16), (5, 12), (3, 1)])
def test_random_centres_are_balanced_and_apart(num_classes, num_bits):
    centres = class_centres(num_classes, num_bits)
    assert set(np.unique(centres)) <= {-1.0, 1.0}
    assert (abs(centres.sum(1)) <= 1).all()
    distance = (num_bits - centres @ centres.T) / 2 + num_bits * np.eye(num_classes)
    assert distance.min() >= {48: 20, 16: 4, 12: 6, 1: 0}[num_bits]


def test_hadamard_of_two_and_four():
    np.testing.assert_array_equal(hadamard(2), [[1, 1], [1, -1]])
    np.testing.assert_array_equal(
        hadamard(4), [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    )
