"""Losses that are not of pairs of images, against plain loops, and the centres of classes."""

import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import methods, pairs
from mch_jax.methods import base as losses
from mch_jax.methods.centres import class_centres, hadamard

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
    _, parts = losses.base_loss(
        model, jnp.asarray(logits, jnp.float32), jnp.asarray(pairs.pack_labels(labels)),
        0.5, 0.3, num_classes=CLASSES,
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
