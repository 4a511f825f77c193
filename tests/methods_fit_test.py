"""The methods in closed form: LSH, ITQ and KSH."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import models, pairs
from mch_jax.methods import itq, ksh, lsh


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    """Returns non-negative features, like those after ReLU."""
    return np.abs(np.random.default_rng(0).normal(size=(200, 12))).astype(np.float32)


def test_lsh_is_random_and_centred_only_if_asked(features, key):
    layer = lsh.fit(features, None, 7, key)
    assert layer["kernel"].shape == (12, 7)
    np.testing.assert_array_equal(layer["bias"], 0)
    centred = lsh.fit(features, None, 7, key, center=True)
    np.testing.assert_array_equal(centred["kernel"], layer["kernel"])
    projected = features @ centred["kernel"] + centred["bias"][None]
    np.testing.assert_allclose(projected.mean(0), 0, atol=1e-4)


def quantization_loss(features: np.ndarray, layer: dict) -> float:
    projected = np.asarray(features @ layer["kernel"] + layer["bias"][None])
    return float(((np.where(projected >= 0, 1, -1) - projected) ** 2).sum())


def test_itq_rotates_the_principal_components(features, key):
    layer = itq.fit(features, None, 5, key)
    kernel = np.asarray(layer["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(5), atol=1e-5)
    centred = features - features.mean(0)
    _, _, right = np.linalg.svd(centred, full_matrices=False)
    residual = kernel - right[:5].T @ (right[:5] @ kernel)
    np.testing.assert_allclose(residual, 0, atol=1e-4)
    np.testing.assert_allclose(
        centred @ kernel, features @ kernel + np.asarray(layer["bias"]), atol=1e-4
    )


def test_itq_of_fewer_images_than_features_has_the_same_components(key):
    rng = np.random.default_rng(1)
    factors = rng.normal(size=(30, 8)) * np.linspace(3, 1, 8)
    wide = (factors @ rng.normal(size=(8, 50)) + 0.1 * rng.normal(size=(30, 50))).astype("f4")
    kernel = np.asarray(itq.fit(wide, None, 6, key)["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, np.eye(6), atol=1e-5)
    _, _, right = np.linalg.svd(wide - wide.mean(0), full_matrices=False)
    np.testing.assert_allclose(kernel, right[:6].T @ (right[:6] @ kernel), atol=1e-5)
    # Even for images without variance the columns are orthonormal, so that bits differ.
    flat = np.asarray(itq.fit(np.ones((30, 50), np.float32), None, 6, key)["kernel"])
    np.testing.assert_allclose(flat.T @ flat, np.eye(6), atol=1e-5)


def test_itq_steps_never_increase_the_quantization_loss(features, key):
    losses = [
        quantization_loss(features, itq.fit(features, None, 5, key, num_steps=n))
        for n in (0, 1, 2, 5, 50)
    ]
    assert all(after <= before + 1e-3 for before, after in zip(losses, losses[1:], strict=False))
    assert losses[-1] < losses[0] - 1


def test_itq_refuses_codes_longer_than_features(features, key):
    with pytest.raises(ValueError, match="got 13, expected at most the features' width, 12"):
        itq.fit(features, None, 13, key)


class Problem:
    """300 images with two of five labels each, each label a direction."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.labels = np.zeros((300, 5), np.uint8)
        for row in self.labels:
            row[rng.choice(5, 2, replace=False)] = 1
        noise = rng.normal(size=(300, 16))
        self.features = (self.labels @ rng.normal(size=(5, 16)) + noise).astype(np.float32)
        self.packed = pairs.pack_labels(self.labels)
        self.target = np.where(self.labels.astype(int) @ self.labels.T > 0, 1.0, -1.0)

    def fit(self, **settings) -> dict[str, jax.Array]:
        settings = {"num_anchors": 40, "num_labelled": 200, **settings}
        num_bits = settings.pop("num_bits", 8)
        return ksh.fit(self.features, self.packed, num_bits, jax.random.key(0), **settings)

    def codes(self, layer: dict[str, jax.Array]) -> np.ndarray:
        head: Any = models.KernelHead(layer["projection"].shape[1], len(layer["anchors"]))
        return np.where(head.apply({"params": layer}, jnp.asarray(self.features)) >= 0, 1.0, -1.0)

    def loss(self, layer: dict[str, jax.Array]) -> float:
        codes = self.codes(layer)
        return float(((codes @ codes.T / codes.shape[1] - self.target) ** 2).mean())


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


@pytest.fixture(scope="module")
def layer(problem) -> dict[str, jax.Array]:
    return problem.fit()


def test_ksh_kernel_is_gaussian_and_centred(problem, layer):
    assert {name: value.shape for name, value in layer.items()} == {
        "anchors": (40, 16), "scale": (), "mean": (40,), "projection": (40, 8),
    }  # fmt: skip
    anchors = np.asarray(layer["anchors"], np.float64)
    assert all((problem.features == a).all(axis=1).any() for a in anchors)
    distance = ((problem.features[:, None] - anchors[None]) ** 2).sum(-1)
    assert float(layer["scale"]) == pytest.approx(distance.mean(), rel=1e-5)
    kernel = np.exp(-distance / (2 * distance.mean()))
    np.testing.assert_allclose(layer["mean"], kernel.mean(0), rtol=1e-4)
    expected = (kernel - kernel.mean(0)) @ np.asarray(layer["projection"])
    head: Any = models.KernelHead(8, 40).apply({"params": layer}, jnp.asarray(problem.features))
    np.testing.assert_allclose(head, expected, atol=0.02 * np.abs(expected).max())


def test_ksh_fits_the_pairs_and_smoothing_helps(problem, layer, monkeypatch):
    monkeypatch.setattr(ksh, "_smoothed", lambda kernel, residual, start: start)
    spectral = problem.loss(problem.fit())
    assert problem.loss(layer) < spectral < (problem.target**2).mean()


def test_ksh_more_bits_fit_better(problem, layer):
    assert problem.loss(problem.fit(num_bits=16)) < problem.loss(layer)


def test_ksh_refuses_more_anchors_than_images(problem):
    layer = problem.fit(num_bits=1, num_anchors=300, num_labelled=1000)
    assert layer["anchors"].shape == (300, 16)
    assert np.isfinite(layer["projection"]).all()
    with pytest.raises(ValueError, match="num_anchors is 301, expected 1 to 300, the number of tr"):
        problem.fit(num_bits=1, num_anchors=301)


def test_ksh_target_equals_the_whole_matrix():
    rng = np.random.default_rng(0)
    labels = (rng.random((50, 40)) < 0.04).astype(np.uint8)
    target = np.where((labels.astype(int) @ labels.T > 0) | np.eye(50, dtype=bool), 1.0, -1.0)
    x = rng.normal(size=(50, 3))
    np.testing.assert_allclose(ksh._target(pairs.pack_labels(labels))(x), target @ x)
    assert not labels.any(axis=1).all()


def test_ksh_spectral_start_is_the_maximiser_of_its_norm():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(30, 4))
    residual = np.where(rng.random((30, 30)) < 0.5, 1.0, -1.0)
    residual = np.triu(residual) + np.triu(residual, 1).T
    start = ksh._spectral(kernel, lambda x: residual @ x, kernel.T @ kernel)
    scores = kernel @ start
    assert scores @ scores == pytest.approx(30)
    for other in rng.normal(size=(200, 4)):
        other_scores = kernel @ other
        other_scores *= np.sqrt(30) / np.linalg.norm(other_scores)
        assert other_scores @ residual @ other_scores <= scores @ residual @ scores + 1e-6


def test_ksh_smoothing_descends_to_a_stationary_point():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(30, 4))
    signs = rng.choice([-1.0, 1.0], 30)
    residual = np.outer(signs, signs) + np.diag(np.ones(30))

    def value(a):
        y = 2 * jax.nn.sigmoid(kernel @ a) - 1
        return -y @ residual @ y

    start = ksh._spectral(kernel, lambda x: residual @ x, kernel.T @ kernel)
    found = ksh._smoothed(kernel, lambda x: residual @ x, start, tolerance=1e-9, max_steps=5000)
    slope = jax.grad(value)
    assert value(found) < value(start)
    assert jnp.linalg.norm(slope(found)) < 0.05 * jnp.linalg.norm(slope(start))
