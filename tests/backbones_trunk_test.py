"""Backbones that are trained with the hash layer: the same function, gradients, files."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import changed, tiny

from mch_jax.backbones import networks
from mch_jax.encoder import FILE, Encoder
from mch_jax.files import load_arrays, save_arrays
from mch_jax.models import AlexNet
from mch_jax.training import claims, network, run, validation

SMALL = {
    "resnet50": networks.ResNet50(stages=((2, 1), (3, 2))),
    "vit_s16": networks.VisionTransformer(8, 2, depth=1),
}
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(networks, "NETWORKS", SMALL)


@pytest.fixture
def weights(tmp_path):
    """Writes random weights of a network under the names of its file; returns their path."""

    def weights(name):
        arrays, rng = {}, np.random.default_rng(0)
        for path, leaf in jax.tree_util.tree_leaves_with_path(networks.shapes(name, 64)):
            *layers, last = (str(entry.key) for entry in path[1:])
            order = {2: (1, 0), 4: (3, 2, 0, 1)}.get(leaf.ndim, range(leaf.ndim))
            shape = leaf.shape if last != "kernel" else tuple(leaf.shape[axis] for axis in order)
            value = rng.normal(0, 1 / math.sqrt(math.prod(shape[1:])), shape).astype(np.float32)
            key = ".".join([*layers, networks._LEAVES.get(last, last)])
            arrays[key] = np.abs(value) + 0.5 if last == "var" else value
        np.savez(tmp_path / f"{name}.npz", **arrays)
        return str(tmp_path / f"{name}.npz")

    return weights


@pytest.mark.parametrize("name", SMALL)
def test_a_trunk_computes_what_the_frozen_network_does(name, weights):
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
    expected = networks.network(name, weights(name), 64, MEAN, STD)(images)
    params = networks.folded(networks.import_weights(name, weights(name), 64))
    model = AlexNet(4, hidden=0, trunk=networks.trainable(name), mean=MEAN, std=STD)
    drawn = network.random_params(model, 64, 0)
    shapes = jax.tree.map(np.shape, drawn["trunk"])
    assert shapes == jax.tree.map(np.shape, params)
    found: Any = model.apply(
        {"params": drawn | {"trunk": params}}, jnp.asarray(images, jnp.float32)
    )
    np.testing.assert_allclose(found.features, expected, rtol=1e-4, atol=1e-5)


def test_a_run_begins_with_the_weights(weights, tmp_path):
    config = tiny(base__train_conv=True, model__backbone="vit_s16")
    config.model.update(hidden=0, input_size=64, weights=weights("vit_s16"))
    with claims.claimed(tmp_path / "run"):
        this = run.open_run(config, tmp_path / "run")
        digests = this.training_inputs
    found = networks.import_weights("vit_s16", config.model.weights, 64)["params"]
    assert jax.tree.all(jax.tree.map(np.array_equal, this.initial_params["trunk"], found))
    assert this.needed_params(this.initial_params).keys() == {"trunk", "hash"}
    assert "backbone" not in digests
    assert not (tmp_path / "run" / "backbone.npz").exists()
    config.model.mean = (0.5, 0.5, 0.5)
    other = run.Run(config, tmp_path / "run", this.dataset, this.audit).training_inputs
    assert [key for key in digests if other[key] != digests[key]] == ["initial weights"]


@pytest.mark.parametrize("name", SMALL)
def test_every_layer_has_a_gradient(name):
    model = AlexNet(4, hidden=0, trunk=networks.trainable(name), mean=MEAN, std=STD)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(x + rng.normal(0, 0.1, x.shape).astype(np.float32)),
        network.random_params(model, 64, 0),
    )
    images = jnp.asarray(rng.uniform(0, 255, (2, 64, 64, 3)), jnp.float32)

    def loss(params):
        encoding: Any = model.apply({"params": params}, images)
        return jnp.sum(jnp.tanh(encoding.logits) * jnp.arange(8.0).reshape(2, 4))

    gradient = jax.jit(jax.grad(loss))(params)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradient["trunk"]))


@pytest.mark.parametrize("name", SMALL)
def test_an_encoder_is_saved_with_its_trunk(name, tmp_path):
    model = AlexNet(12, hidden=0, trunk=networks.trainable(name), mean=MEAN, std=STD)
    params = network.random_params(model, 64, 0)
    Encoder(model, params, None, {}, 0.5, 0.5, 64, 64).save(tmp_path / FILE)
    loaded = Encoder.load(tmp_path / FILE)
    assert loaded.model == model
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, params))
    tree, settings = load_arrays(tmp_path / FILE)
    settings["trunk"]["name"] = "resnet18"
    save_arrays(tmp_path / FILE, tree, settings)
    with pytest.raises(ValueError, match="there is no network 'resnet18'"):
        Encoder.load(tmp_path / FILE)


def test_only_networks_in_flax_are_trained():
    validation.check(changed(model__backbone="vit_s16", model__weights="w.pth"))
    for source in ("net.onnx", "package.module:function"):
        with pytest.raises(ValueError, match="base.train_conv is True, expected False where"):
            validation.check(changed(model__backbone=source))
