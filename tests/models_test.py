import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import models
from mch_jax.models import AlexNet, Policy

SMALL: Any = AlexNet(num_bits=5, hidden=12, width=1 / 16)


def num_params(model, *shape: int) -> int:
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.fixture(scope="module")
def params():
    images = jnp.zeros((1, 64, 64, 3))
    return jax.jit(SMALL.init)(jax.random.key(0), images)


def test_alexnet_has_torchvisions_parameters():
    # 61,100,840 in torchvision, of which fc8 has 4,096 x 1,000 + 1,000.
    expected = 61_100_840 - 4_097_000 + 64 * 4096 + 64
    assert num_params(AlexNet(num_bits=64), 1, 224, 224, 3) == expected


def test_policy_parameters():
    # The state has 2 d + 2 q columns, and batch norm replaces the biases of the hidden layers.
    state, widths = 2 * 4096 + 2 * 64, (1024, 512, 256, 128)
    dense = sum(a * b for a, b in zip((state, *widths), (*widths, 2), strict=True)) + 2
    assert num_params(Policy(), 1, state) == dense + 2 * sum(widths) == 9_211_906


def test_alexnet_layers(params):
    assert set(params["params"]) == {f"conv{i}" for i in range(1, 6)} | {"fc6", "fc7", "hash"}
    images = jnp.linspace(0, 255, 2 * 64 * 64 * 3).reshape(2, 64, 64, 3)
    encoding = SMALL.apply(params, images)
    assert encoding.features.shape == (2, 12)
    assert encoding.logits.shape == (2, 5)
    assert np.asarray(encoding.features).min() >= 0
    conv = SMALL.apply(params, images, method="conv_features")
    head = SMALL.apply(params, conv, method="head")
    np.testing.assert_allclose(head.logits, encoding.logits, rtol=1e-5, atol=1e-7)


def test_convolutions_may_compute_in_bfloat16(params):
    model: Any = SMALL.clone(conv_dtype="bfloat16")
    images = jnp.linspace(0, 255, 2 * 64 * 64 * 3).reshape(2, 64, 64, 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    outputs = [m.apply(params, images, method="conv_features") for m in (SMALL, model)]
    assert outputs[1].dtype == jnp.float32
    assert (outputs[0] != outputs[1]).any()
    np.testing.assert_allclose(*outputs, atol=0.03 * outputs[0].max())
    text = jax.jit(model.apply).lower(params, images).as_text()
    assert len(re.findall(r"stablehlo.convolution.*-> tensor<.*xbf16>", text)) == 5
    assert len(re.findall(r"stablehlo.dot_general.*-> tensor<.*xf32>", text)) == 3


def test_without_hidden_layers_features_are_the_convolutions(params):
    model: Any = AlexNet(num_bits=5, hidden=0, width=1 / 16)
    conv = jnp.ones((3, 16))
    variables = jax.jit(model.init, static_argnames="method")(
        jax.random.key(0), conv, method="head"
    )
    assert set(variables["params"]) == {"hash"}
    np.testing.assert_array_equal(model.apply(variables, conv, method="head").features, conv)


@pytest.mark.parametrize(("height", "width"), [(6, 7), (7, 8), (13, 6), (3, 5)])
def test_adaptive_mean_pool_equals_a_loop(height, width):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    rows, columns = min(height, 6), min(width, 6)
    expected = np.zeros((2, rows, columns, 3))
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * height // rows, -(-(i + 1) * height // rows)
            left, right = j * width // columns, -(-(j + 1) * width // columns)
            expected[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
    result = models.adaptive_mean_pool(jnp.asarray(x), 6)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_dropout_depends_on_the_example_alone(params, key):
    keys = jax.random.split(key, 8)
    x = jnp.ones((8, 1000))
    dropped = np.asarray(models.dropout(x, keys))
    assert set(np.unique(dropped)) == {0, 2}
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(models.dropout(x[5:6], keys[5:6]), dropped[5:6])
    conv = jnp.ones((8, 16))
    whole = SMALL.apply(params, conv, keys, method="head").features
    part = SMALL.apply(params, conv[2:4], keys[2:4], method="head").features
    np.testing.assert_allclose(part, whole[2:4], rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(whole), axis=0)) > 1


def test_kernel_head_equals_a_loop():
    rng = np.random.default_rng(0)
    features, anchors = rng.normal(size=(3, 4)), rng.normal(size=(6, 4))
    mean, projection, scale = rng.normal(size=6), rng.normal(size=(6, 5)), 2.5
    expected = np.zeros((3, 5))
    for i in range(3):
        for j in range(6):
            kernel = np.exp(-((features[i] - anchors[j]) ** 2).sum() / (2 * scale))
            expected[i] += (kernel - mean[j]) * projection[j]
    params = {"anchors": anchors, "scale": scale, "mean": mean, "projection": projection}
    params = jax.tree.map(jnp.float32, params)
    model: Any = AlexNet(num_bits=5, hidden=0, num_anchors=6)
    encoding = model.apply({"params": {"hash": params}}, jnp.float32(features), method="head")
    np.testing.assert_allclose(encoding.logits, expected, rtol=1e-4, atol=1e-5)
    shapes = jax.eval_shape(
        lambda key, x: model.init(key, x, method="head"), jax.random.key(0), jnp.ones((1, 4))
    )
    assert jax.tree.map(jnp.shape, shapes["params"]["hash"]) == jax.tree.map(jnp.shape, params)


def test_squared_distance_has_full_precision():
    x = jnp.ones((3, 4))
    assert "HIGHEST" in str(jax.make_jaxpr(models.squared_distance)(x, x))


def test_squared_distance_is_not_negative():
    x = jnp.float32(np.random.default_rng(0).normal(size=(20, 7)) + 100)
    distance = np.asarray(models.squared_distance(x, x))
    assert distance.min() >= 0
    assert np.diag(distance).max() < 0.1


def test_policy_starts_near_one_half_and_averages_its_statistics(key):
    model: Any = Policy((16, 8, 8, 4))
    state = jax.random.normal(key, (64, 10)) * 3 + 1
    variables = jax.jit(model.init)(key, state)
    logits, updated = model.apply(variables, state, train=True, mutable=["batch_stats"])
    keep_prob = jax.nn.softmax(logits)[:, 1]
    np.testing.assert_allclose(keep_prob, 0.5, atol=0.05)
    # Momentum 0.9 from mean 0 and variance 1.
    hidden = np.asarray(state @ variables["params"]["Dense_0"]["kernel"])
    statistics = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * hidden.var(0), rtol=1e-4)
    # At test time the result for an image does not depend on the others.
    alone = model.apply(variables, state[:1])
    np.testing.assert_allclose(alone, model.apply(variables, state)[:1], rtol=1e-5, atol=1e-6)


def test_max_pool_and_its_gradient_equal_those_of_flax(key):
    x = jax.random.normal(key, (2, 14, 13, 5))
    expected, pull = jax.vjp(lambda x: nn.max_pool(x, (3, 3), (2, 2), "VALID"), x)
    result, own_pull = jax.vjp(models.max_pool, x)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_allclose(own_pull(expected)[0], pull(expected)[0], rtol=1e-6)
