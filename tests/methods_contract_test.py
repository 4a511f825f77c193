"""The contract of every method in the table, and the formula of each."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mch_jax import codes, methods, metrics, models, pairs
from mch_jax.methods import base as losses

NAMES = list(methods.OBJECTIVES)
TABLE_1 = ("ksh", "hashnet", "adsh", "dch", "mmhh")
PROGRESS = (0.0, 0.5, 1.0)


def both_kinds(num_bits: int) -> tuple[jax.Array, jax.Array]:
    """Returns distances 0..q twice, for dissimilar and for similar pairs."""
    distance = jnp.tile(jnp.arange(num_bits + 1.0), (2, 1))
    return distance, jnp.tile(jnp.array([[False], [True]]), (1, num_bits + 1))


def own_parameters(model: losses.Objective, num_classes: int) -> Any:
    """Returns initial parameters of the batch loss, or None."""
    rng = np.random.default_rng(0)
    return model.parameters(num_classes, rng) if model.parameters else None


@pytest.mark.parametrize("num_bits", [1, 11, 64])
@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_finite_at_every_distance(name, num_bits):
    model = methods.objective(name, num_bits)
    distance, similar = both_kinds(num_bits)
    loss, pull = jax.vjp(lambda d: model.pair_loss(d, similar), distance)
    assert loss.shape == distance.shape
    assert jnp.isfinite(loss).all()
    assert jnp.isfinite(pull(jnp.ones_like(loss))[0]).all()
    assert jnp.isfinite(losses.loss_table(model, num_bits, 0.3)).all()


@pytest.mark.parametrize("num_bits", [11, 64])
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_similar_pairs_rises_and_of_dissimilar_pairs_falls(name, num_bits):
    dissimilar, similar = methods.objective(name, num_bits).pair_loss(*both_kinds(num_bits))
    assert (jnp.diff(similar) >= 0).all()
    assert (jnp.diff(dissimilar) <= 0).all()
    assert similar[-1] > similar[0]
    assert dissimilar[0] > dissimilar[-1]
    assert (similar >= 0).all()
    assert (dissimilar >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_distances_of_relaxed_codes_are_in_range(name, key):
    model = methods.objective(name, 16)
    logits = 5 * jax.random.normal(key, (40, 16))
    for progress in PROGRESS:
        relaxed = model.relax(logits, progress)
        distance = pairs.relaxed_distance(relaxed, relaxed)
        assert float(distance.min()) > -1e-3
        assert float(distance.max()) < 16 + 1e-3
        np.testing.assert_array_equal(codes.sign(relaxed), codes.sign(logits))
        assert (model.penalty(jnp.sign(logits), relaxed) >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_codes_have_no_penalty(name):
    signs = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], (6, 16)), jnp.float32)
    np.testing.assert_allclose(methods.objective(name, 16).penalty(signs, signs), 0, atol=1e-6)


@pytest.mark.parametrize("logits", ["zero", "equal", "opposite", "huge"])
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_logits_keep_the_loss_and_its_gradient_finite(name, logits):
    model = methods.objective(name, 16)
    row = jnp.linspace(-1.0, 2.0, 16)
    value = {
        "zero": jnp.zeros((4, 16)),
        "equal": jnp.tile(row, (4, 1)),
        "opposite": jnp.stack([row, -row, row, -row]),
        "huge": 1e4 * jnp.stack([row, -row, row, row + 1]),
    }[logits]
    labels = jnp.array([[1], [1], [2], [0]], jnp.uint32)
    for progress in PROGRESS:
        loss, gradient = jax.value_and_grad(
            lambda x, progress=progress: losses.base_loss(
                model, x, labels, progress, 0.2, num_classes=2, parameters=own_parameters(model, 2)
            )[0]
        )(value)
        assert jnp.isfinite(loss)
        assert jnp.isfinite(gradient).all()


def plain(name: str, d: float, similar: bool, q: int) -> float:
    """Returns the loss of Table 1 as printed, with the floor of DCH's distance."""
    if name == "ksh":
        return ((q - 2 * d) / q - (2 * similar - 1)) ** 2
    if name == "hashnet":
        product = 10 / q * (q - 2 * d)
        return np.log(1 + np.exp(product)) - similar * product
    if name == "adsh":
        return (q - 2 * d - q * (2 * similar - 1)) ** 2
    if name == "dch":
        d = max(d, 0.005 * q)
        return similar * np.log(d / 20) + np.log(1 + 20 / d)
    return similar * np.log(1 + max(0, d - 2)) + (1 - similar) * np.log(1 + 1 / max(2, d))


@pytest.mark.parametrize("name", TABLE_1)
def test_pair_loss_is_table_1(name):
    q = 32
    expected = [[plain(name, d, similar, q) for d in range(q + 1)] for similar in (False, True)]
    found = methods.objective(name, q).pair_loss(*both_kinds(q))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ksh", [1, 1]),
        ("hashnet", [1 / 0.8, 1 / 0.2]),
        ("adsh", [1, 1]),
        ("dch", [1 / 0.8, 1 / 0.2]),
        ("mmhh", [10 / 0.8, 1 / 0.2]),
    ],
)
def test_pair_weights(name, expected):
    weight = methods.objective(name, 8).pair_weight(jnp.array([False, True]), 0.2)
    np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_hashnet_continues_from_tanh_to_the_sign():
    logits = jnp.array([[0.3, -2.0]])
    relax = methods.objective("hashnet", 2).relax
    np.testing.assert_allclose(relax(logits, 0.0), np.tanh([[0.3, -2.0]]), rtol=1e-6)
    scale = np.sqrt(51)  # the authors' (1 + 0.005 t)^0.5 at their last step, t = 10,000
    np.testing.assert_allclose(relax(logits, 1.0), np.tanh(scale * np.array([[0.3, -2.0]])), 1e-6)


@pytest.mark.parametrize(("name", "weight"), [("dch", 0.1), ("mmhh", 0.1)])
def test_penalty_is_table_1(name, weight):
    u = np.tanh(np.array([[0.5, -1.0, 2.0, 0.1]]))
    b = np.sign(u)
    cosine = (b * u).sum() / np.linalg.norm(b) / np.linalg.norm(u)
    expected = {
        "dch": np.log(1 + 4 / (2 * 20) * (1 - cosine)),
        "mmhh": ((b - 2 * u / np.linalg.norm(u)) ** 2).mean(),
    }[name]
    model = methods.objective(name, 4)
    relaxed = model.relax(jnp.arctanh(jnp.asarray(u, jnp.float32)), 0.0)
    found = model.penalty(jnp.asarray(b, jnp.float32), relaxed)
    np.testing.assert_allclose(found, [weight * expected], rtol=1e-4)


@pytest.mark.parametrize("name", ["dch", "mmhh"])
def test_cosine_methods_depend_on_the_angle_only(name, key):
    logits = jnp.arctanh(0.1 * jax.random.normal(key, (2, 8)) / 3)
    u = np.tanh(np.asarray(logits, np.float64))
    cosine = u[0] @ u[1] / np.linalg.norm(u[0]) / np.linalg.norm(u[1])
    relaxed = methods.objective(name, 8).relax(logits, 0.0)
    distance = pairs.relaxed_distance(relaxed[:1], relaxed[1:])
    np.testing.assert_allclose(distance, [[4 * (1 - cosine)]], rtol=1e-3)


@pytest.mark.parametrize("similar", [False, True])
def test_mmhh_is_flat_within_the_radius(similar):
    slope = jax.vmap(jax.grad(methods.objective("mmhh", 32).pair_loss), (0, None))(
        jnp.array([0.0, 1.0, 1.9, 2.1, 9.0]), jnp.array(similar)
    )
    np.testing.assert_array_equal(slope[:3], 0)
    assert (slope[3:] != 0).all()


@pytest.mark.parametrize("num_bits", [16, 32, 64])
def test_mmhh_does_not_prefer_one_code_for_all_images(num_bits):
    """The mean loss weighs each kind of pair in the table by its fraction."""

    def at(distance: int, **settings: float) -> float:
        table = losses.loss_table(methods.objective("mmhh", num_bits, **settings), num_bits, 0.3)
        return float(0.7 * table[0, distance] + 0.3 * table[1, distance])

    assert at(0) > at(num_bits // 2)
    assert at(0, dissimilar_weight=1.0) < at(num_bits // 2, dissimilar_weight=1.0)


def test_the_floor_of_dch_determines_the_loss_of_a_collision():
    def collision(floor: float) -> float:
        model = methods.objective("dch", 32, floor=floor)
        return float(model.pair_loss(jnp.array(0.0), jnp.array(False)))

    assert collision(0.005) == pytest.approx(np.log(1 + 20 / 0.16), rel=1e-4)
    assert collision(1 / 16) == pytest.approx(np.log(11), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("dcg", 32), {}, "'dcg'.*ksh, hashnet, adsh, dch, mmhh"),
        (("dch", 0), {}, "num_bits.*at least 1"),
        (("dch", 32), {"gama": 2.0}, "'gama'.*gamma, penalty_weight, floor"),
        (("ksh", 32), {"gamma": 2.0}, "'gamma'.*none"),
        (("dch", 32), {"floor": 0.0}, "floor is 0.0.*above 0"),
        (("mmhh", 32), {"margin": 0}, "margin is 0.*above 0"),
        (("dch", 32), {"penalty_weight": -1.0}, "penalty_weight is -1.0.*at least 0"),
        (("dch", 32), {"gamma": float("nan")}, "gamma is nan"),
        (("dch", 32), {"gamma": "20"}, "gamma is '20'.*number"),
    ],
)
def test_a_wrong_name_or_setting_is_refused_with_the_choices(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        methods.objective(*arguments, **settings)


def toy(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns features and labels of images with two of six classes, each class a direction."""
    labels = np.zeros((size, 6), np.uint8)
    for row in labels:
        row[rng.choice(6, 2, replace=False)] = 1
    directions = np.random.default_rng(1).normal(size=(6, 20))
    return (labels @ directions + rng.normal(size=(size, 20))).astype(np.float32), labels


def toy_map(signs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Returns mAP and its chance level, with the first 40 images as queries."""
    as_bytes = codes.to_bytes(np.asarray(codes.pack(jnp.asarray(signs))), signs.shape[1])
    relevant = labels[:40].astype(int) @ labels[40:].T > 0
    histogram = metrics.histogram(
        as_bytes[:40], as_bytes[40:], np.arange(len(labels) - 40), relevant, signs.shape[1]
    )
    return metrics.mean_average_precision(histogram), metrics.chance_map(histogram)


@pytest.mark.parametrize("name", NAMES)
def test_a_linear_model_learns(name, key):
    features, labels = toy(np.random.default_rng(0), 240)
    train, packed = jnp.asarray(features[40:]), jnp.asarray(pairs.pack_labels(labels[40:]))
    fraction = pairs.similar_fraction(np.asarray(packed))
    model = methods.objective(name, 16)
    optimizer = optax.adam(0.02)

    @jax.jit
    def run(kernel):
        def step(carry, progress):
            kernel, state = carry
            loss, gradient = jax.value_and_grad(
                lambda k: losses.base_loss(
                    model, train @ k[0], packed, progress, fraction, num_classes=6, parameters=k[1]
                )[0]
            )(kernel)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(kernel, updates), state), loss

        return jax.lax.scan(step, (kernel, optimizer.init(kernel)), jnp.linspace(0, 1, 100))

    start = 0.1 * jax.random.normal(key, (20, 16))
    ((kernel, _), _), history = run((start, own_parameters(model, 6)))
    assert history[-1] < history[0]
    before, _ = toy_map(np.asarray(codes.sign(features @ start)), labels)
    after, chance = toy_map(np.asarray(codes.sign(features @ kernel)), labels)
    assert after > before + 0.02
    assert after > chance + 0.1


CLOSED_FORMS = [name for name, method in methods.METHODS.items() if method.closed_form]


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_closed_form_ranks_above_chance(name, key):
    features, labels = toy(np.random.default_rng(0), 240)
    method = methods.METHODS[name]
    train, packed = jnp.asarray(features[40:]), pairs.pack_labels(labels[40:])
    settings = {"num_anchors": 100} if method.kernel_head else {}
    layer = method.closed_form(train, packed, 16, key, **settings)
    model: Any = models.AlexNet(16, hidden=0, num_anchors=settings.get("num_anchors", 0))
    conv = jnp.asarray(features)
    logits = model.apply({"params": {"hash": layer}}, conv, method="head").logits
    signs = codes.sign(logits)
    found, chance = toy_map(np.asarray(signs), labels)
    assert found > chance + 0.02
