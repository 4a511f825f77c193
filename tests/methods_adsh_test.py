import itertools
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from mch_jax.methods import adsh
from mch_jax.training import base, base_step, run, termination

GAMMA = 7.0


class Problem:
    """Four sampled images of a database of nine, with 5 bits."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.rows = rng.permutation(9)[:4]
        self.relaxed = np.tanh(rng.normal(size=(4, 5))).astype(np.float32)
        self.codes = rng.choice(np.array([-1, 1], np.float32), (9, 5))
        self.similar = rng.random((4, 9)) < 0.4
        r = self.similar.sum() / (~self.similar).sum()
        self.target = np.where(self.similar, 1, -r).astype(np.float32)

    def value(self, codes: np.ndarray) -> float:
        """Returns (J), by loops."""
        pairs = sum(
            (self.relaxed[i] @ codes[j] - 5 * self.target[i, j]) ** 2
            for i, j in itertools.product(range(4), range(9))
        )
        own = sum(((codes[r] - u) ** 2).sum() for r, u in zip(self.rows, self.relaxed, strict=True))
        return float(pairs + GAMMA * own)

    def update(self, codes: np.ndarray) -> np.ndarray:
        arrays = (codes, self.relaxed, self.rows, self.target)
        found = jax.jit(adsh.update_database_codes)(*map(jnp.asarray, arrays), gamma=GAMMA)
        return np.asarray(found)


def test_both_kinds_of_pairs_have_the_same_total_weight():
    problem = Problem(0)
    similar = jnp.asarray(problem.similar)
    soft = adsh.soft_similarity(similar, adsh.dissimilar_target(similar))
    np.testing.assert_allclose(soft, problem.target, rtol=1e-6)
    assert float(soft.sum()) == pytest.approx(0, abs=1e-5)
    np.testing.assert_array_equal(
        adsh.soft_similarity(similar, -1.0), np.where(problem.similar, 1, -1)
    )


def test_train_loss_is_the_objective_divided_by_the_pairs():
    problem = Problem(0)
    own = problem.codes[problem.rows]
    arrays = (problem.relaxed, own, problem.codes, problem.target)
    loss = adsh.train_loss(*map(jnp.asarray, arrays), gamma=GAMMA)
    assert float(loss) == pytest.approx(problem.value(problem.codes) / (4 * 9), rel=1e-5)


def test_train_loss_of_halves_averages_to_the_whole():
    problem = Problem(0)
    arrays = (problem.relaxed, problem.codes[problem.rows], problem.target)

    def loss(part: slice) -> float:
        relaxed, own, target = (jnp.asarray(x[part]) for x in arrays)
        return float(adsh.train_loss(relaxed, own, jnp.asarray(problem.codes), target))

    halves = (loss(slice(2)) + loss(slice(2, 4))) / 2
    assert halves == pytest.approx(loss(slice(4)), rel=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_update_never_increases_the_objective(seed):
    problem = Problem(seed)
    codes, value = problem.codes, problem.value(problem.codes)
    for _ in range(4):
        codes = problem.update(codes)
        assert set(np.unique(codes)) <= {-1.0, 1.0}
        assert problem.value(codes) <= value + 1e-3
        value = problem.value(codes)


@pytest.mark.parametrize("seed", range(5))
def test_the_last_bit_of_a_sweep_is_optimal_given_the_others(seed):
    problem = Problem(seed)
    codes = problem.update(problem.codes)
    for row in range(9):
        flipped = codes.copy()
        flipped[row, -1] *= -1
        assert problem.value(codes) <= problem.value(flipped) + 1e-3


def test_zeros_are_a_valid_start():
    problem = Problem(0)
    codes = problem.update(np.zeros_like(problem.codes))
    assert set(np.unique(codes)) <= {-1.0, 1.0}
    random = [
        problem.value(np.where(c > 0, 1.0, -1.0))
        for c in np.random.default_rng(1).normal(size=(50, 9, 5))
    ]
    assert problem.value(codes) < min(random)


def test_alternation_learns_codes_of_the_sample():
    """The outputs u are free parameters, so that only the two steps lower the objective."""
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, 30)
    similar = jnp.asarray(classes[:20, None] == classes[None])
    target = adsh.soft_similarity(similar, adsh.dissimilar_target(similar))
    rows = jnp.arange(20)
    logits = jnp.asarray(rng.normal(size=(20, 8)), jnp.float32)
    codes = jnp.zeros((30, 8))

    def loss(logits, codes):
        return adsh.train_loss(jnp.tanh(logits), codes[rows], codes, target, gamma=1.0)

    descend = jax.jit(lambda x, codes: x - 0.1 * jax.grad(loss)(x, codes))
    values = []
    for _ in range(5):
        codes = adsh.update_database_codes(codes, jnp.tanh(logits), rows, target, gamma=1.0)
        values.append(float(loss(logits, codes)))
        for _ in range(20):
            logits = descend(logits, codes)
    assert values[-1] < 0.5 * values[0]
    products = np.asarray(codes @ codes.T)
    same = classes[:, None] == classes[None]
    assert products[same].mean() > products[~same].mean() + 4


def test_database_codes_are_binary_from_the_first_step(tmp_path, monkeypatch):
    seen = []

    def over_devices(*_, **settings):
        def step(state, batch, shared):
            seen.append(np.asarray(shared["codes"]))
            return state, {"loss": np.float32(0)}

        return step

    monkeypatch.setattr(base_step, "over_devices", over_devices)
    base.train(run.open_run(tiny("adsh"), tmp_path))
    assert len(seen) == 14  # 7 turns of 2 steps
    for codes in seen:
        np.testing.assert_array_equal(np.abs(codes), 1)


def test_sigterm_within_a_turn_saves_the_current_step(tmp_path, monkeypatch):
    undisturbed = base.train(run.open_run(tiny("adsh"), tmp_path / "undisturbed"))
    over_devices, steps = base_step.over_devices, []

    def over_devices_and_end(*arguments, **settings):
        step = over_devices(*arguments, **settings)

        def ending(*batch):
            steps.append(1)
            if len(steps) == 5:  # turns have two steps
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*batch)

        return ending

    monkeypatch.setattr(base_step, "over_devices", over_devices_and_end)
    before = signal.getsignal(signal.SIGTERM)
    termination.install()
    try:
        with pytest.raises(SystemExit) as stop:
            base.train(run.open_run(tiny("adsh"), tmp_path / "run"))
    finally:
        signal.signal(signal.SIGTERM, before)
        termination._received.clear()
    assert stop.value.code == 143
    assert (tmp_path / "run" / "checkpoints" / "base" / "5").exists()
    again = base.train(run.open_run(tiny("adsh"), tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, again, undisturbed)
    assert len(steps) == 14
    logs = [(tmp_path / x / "metrics.jsonl").read_text() for x in ("run", "undisturbed")]
    assert logs[0] == logs[1]
