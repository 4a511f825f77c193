"""DPHN: its rewards against plain loops, and its policy gradient against the exact one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax.methods import dphn


def plain_reward(code: np.ndarray, row: int, similar: np.ndarray, codes: np.ndarray) -> float:
    """Returns the tie-aware average precision of a code's list, without the photo in a row."""
    found, seen, total = 0, 0, 0.0
    for radius in range(len(code) + 1):
        at = [j for j, other in enumerate(codes) if j != row and (other != code).sum() == radius]
        relevant = sum(similar[j] for j in at)
        total += relevant * (2 * found + relevant + 1) / (2 * seen + len(at) + 1)
        found, seen = found + relevant, seen + len(at)
    return total / found if found else 0.0


def test_rewards_are_average_precisions():
    rng = np.random.default_rng(0)
    codes, drawn = (rng.choice(np.array([-1, 1], np.float32), s) for s in ((20, 6), (4, 3, 6)))
    similar, rows = rng.random((4, 20)) < 0.3, np.array([3, 0, 19, 7])
    similar[2] = False
    found = dphn.rewards(*map(jnp.asarray, (drawn, rows, similar, codes)))
    expected = [
        [plain_reward(code, rows[i], similar[i], codes) for code in drawn[i]] for i in range(4)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not found[2].any()


def test_the_mean_policy_gradient_is_the_gradient_of_the_expected_reward():
    """All pairs of codes of two bits, each weighted by its probability."""
    logits = jnp.array([[0.4, -1.0]])
    every = np.array(list(itertools.product([False, True], repeat=2)))
    reward = np.array([0.1, 0.9, 0.4, 0.3], np.float32)

    def chance(logits):
        p = jax.nn.sigmoid(logits)
        return jnp.where(every, p, 1 - p).prod(1)

    exact = jax.grad(lambda x: -chance(x) @ reward)(logits)
    mean = jnp.zeros_like(logits)
    for a, b in itertools.product(range(4), repeat=2):
        drawn, rewards = jnp.asarray(every[None, [a, b]]), jnp.asarray(reward[None, [a, b]])
        slope = jax.grad(lambda x: dphn.policy_loss(jax.nn.sigmoid(x), drawn, rewards))(logits)  # noqa: B023
        mean += chance(logits)[a] * chance(logits)[b] * slope
    np.testing.assert_allclose(mean, exact, rtol=1e-5)


def test_a_turn_copies_the_codes_of_the_network():
    plan = dphn.alternating()
    assert plan.sample_size is None
    relaxed = jnp.array([[0.2, -0.9], [-0.1, 0.0]])
    found = plan.update(
        jnp.zeros((2, 2)), relaxed, jnp.array([1, 0]), jnp.zeros((2, 2)), jnp.zeros(())
    )
    np.testing.assert_array_equal(found, [[-1, 1], [1, -1]])
    with pytest.raises(ValueError, match="draws is 1, expected at least 2"):
        dphn.alternating(draws=1)
