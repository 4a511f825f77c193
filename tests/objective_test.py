import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import methods, pairs
from mch_jax.methods import base as losses
from mch_jax.methods import objective

NUM_BITS = 12
FRACTION = 0.3


@pytest.fixture(scope="module")
def batch() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    labels = pairs.pack_labels((rng.random((16, 5)) < 0.3).astype(np.uint8))
    return jnp.asarray(rng.normal(size=(16, 7)), jnp.float32), jnp.asarray(labels)


OF_PAIRS = [x for x in methods.OBJECTIVES if methods.objective(x, NUM_BITS).batch_loss is None]


def loss(params, features, labels, model, axis_name=None):
    kernel, own = params
    return losses.base_loss(
        model, features @ kernel, labels, 0.5, FRACTION,
        num_classes=5, parameters=own, axis_name=axis_name,
    )  # fmt: skip


@pytest.mark.parametrize("name", OF_PAIRS)
def test_base_loss_is_a_mean_over_pairs_and_images(name, batch, key):
    features, labels = batch
    model = methods.objective(name, NUM_BITS)
    logits = features @ jax.random.normal(key, (7, NUM_BITS))
    found, parts = losses.base_loss(model, logits, labels, 0.5, FRACTION)
    relaxed = np.asarray(model.relax(logits, 0.5), np.float64)
    terms = []
    for i in range(len(relaxed)):
        for j in range(len(relaxed)):
            if i == j:
                continue
            distance = jnp.asarray((NUM_BITS - relaxed[i] @ relaxed[j]) / 2, jnp.float32)
            similar = jnp.asarray(bool((labels[i] & labels[j]).any()))
            weight = model.pair_weight(similar, FRACTION)
            terms.append(float(weight * model.pair_loss(distance, similar)))
    codes = jnp.sign(logits)
    penalty = float(jnp.mean(model.penalty(codes, model.relax(logits, 0.5))))
    assert float(parts["pair_loss"]) == pytest.approx(np.mean(terms), rel=1e-4)
    assert float(parts["penalty"]) == pytest.approx(penalty, rel=1e-4)
    assert float(found) == pytest.approx(np.mean(terms) + penalty, rel=1e-4)
    assert float(parts["loss"]) == float(found)


@pytest.mark.parametrize("name", methods.OBJECTIVES)
def test_two_devices_equal_one(name, batch, key):
    features, labels = batch
    model = methods.objective(name, NUM_BITS)
    own = model.parameters(5, np.random.default_rng(0)) if model.parameters else None
    params = (jax.random.normal(key, (7, NUM_BITS)), own)

    def step(params, features, labels):
        found = jax.value_and_grad(loss, has_aux=True)(params, features, labels, model, "devices")
        return jax.lax.pmean(found, "devices")

    shared = jax.pmap(
        step, "devices", in_axes=(None, 0, 0), out_axes=None, devices=jax.local_devices()[:2]
    )
    found = shared(params, features.reshape(2, 8, 7), labels.reshape(2, 8, -1))
    expected = jax.value_and_grad(loss, has_aux=True)(params, features, labels, model)
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (found[1], expected[1])), strict=True):
        scale = jnp.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, atol=1e-5)


def test_a_batch_loss_needs_the_number_of_classes(batch):
    features, labels = batch
    model = methods.objective("orthohash", 7)
    with pytest.raises(ValueError, match="num_classes: got None, expected a number"):
        losses.base_loss(model, features, labels, 0.5, FRACTION)


def test_loss_table_is_weighted_and_dissimilar_first():
    table = losses.loss_table(methods.objective("hashnet", 4), 4, 0.2)
    exponent = 2.5 * (4 - 2 * np.arange(5))
    expected = [np.log1p(np.exp(exponent)) / 0.8, np.log1p(np.exp(-exponent)) / 0.2]
    np.testing.assert_allclose(table, expected, rtol=1e-5)


def test_vectors_are_scaled_to_the_sphere_except_zero():
    vectors = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    expected = [[0.6 * np.sqrt(2), 0.8 * np.sqrt(2)], [0, 0]]
    np.testing.assert_allclose(losses.to_sphere(vectors), expected, rtol=1e-5)


def test_numbers_in_the_docstring_of_dch():
    dch = methods.objective("dch", num_bits=32)
    loss = dch.pair_loss(jnp.array([0.0, 16.0]), jnp.array([False, False]))
    np.testing.assert_allclose(loss, [4.84, 0.81], atol=5e-3)


def test_an_objective_is_a_static_argument_of_its_own_number_of_bits():
    calls = []

    def loss(model, logits, labels):
        calls.append(1)
        return losses.base_loss(model, logits, labels, 0.5, FRACTION)[0]

    jitted = jax.jit(loss, static_argnums=0)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8)), jnp.float32)
    labels = jnp.asarray(pairs.pack_labels(np.eye(4, dtype=np.uint8)))
    for _ in range(2):
        jitted(objective("dch", 8, gamma=3.0), logits, labels)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="logits: got 8 of each image, expected 16, the number of"):
        loss(objective("dch", 16), logits, labels)


@pytest.mark.parametrize("name", ["dch", "hyp2"])
def test_base_loss_over_a_mesh_with_explicit_axes(name):
    rng = np.random.default_rng(0)
    labels = pairs.pack_labels((rng.random((8, 5)) < 0.4).astype(np.uint8))
    logits = rng.normal(size=(8, 16)).astype(np.float32)
    model = objective(name, 16)
    own = model.parameters(5, rng) if model.parameters else None

    def loss(logits, labels):
        return losses.base_loss(model, logits, labels, 0.5, 0.3, num_classes=5, parameters=own)[0]

    gradient = jax.jit(jax.grad(loss))
    expected = gradient(jnp.asarray(logits), jnp.asarray(labels))
    types = (jax.sharding.AxisType.Explicit,)
    mesh = jax.make_mesh((2,), ("data",), axis_types=types, devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        rows = jax.NamedSharding(mesh, jax.P("data", None))
        found = gradient(jax.device_put(logits, rows), jax.device_put(labels, rows))
    np.testing.assert_allclose(found, expected, atol=1e-6)
