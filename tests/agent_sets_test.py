"""Greedy sets of codes, against plain loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import codes
from mch_jax.agent import evidence, sets

NUM_BITS, NUM_REFERENCE = 8, 20


@pytest.fixture(scope="module")
def case():
    """Returns bits of four photos with four regions, similarities, and reference photos."""
    rng = np.random.default_rng(0)
    bits = rng.choice([-1, 1], (4, 4, NUM_BITS)).astype(np.int8)
    bits[1, 3] = bits[1, 2]  # two equal regions
    reference_bits = rng.choice([-1, 1], (NUM_REFERENCE, NUM_BITS)).astype(np.int8)
    values = rng.normal(size=(NUM_REFERENCE, 2, NUM_BITS + 1)).astype(np.float32)
    packed = np.asarray(codes.pack(jnp.asarray(reference_bits)))
    labels = np.ones((NUM_REFERENCE, 1), np.uint8)
    similarity = rng.random((4, NUM_REFERENCE)).astype(np.float32)
    return bits, similarity, reference_bits, evidence.Reference(packed, labels, values)


def greedy(bits, similarity, reference_bits, values):
    """Returns the gains of the regions of one photo in greedy order, by plain loops."""
    chosen, order = [0], []
    while len(chosen) < len(bits):
        gains = {}
        for region in set(range(len(bits))) - set(chosen):
            total = 0.0
            for j, other in enumerate(reference_bits):
                before, after = (
                    min(int((bits[t] != other).sum()) for t in kept)
                    for kept in (chosen, [*chosen, region])
                )
                worth = values[j, :, after] - values[j, :, before]
                total += (1 - similarity[j]) * worth[0] + similarity[j] * worth[1]
            gains[region] = total / len(reference_bits)
        best = max(gains, key=lambda region: (gains[region], -region))
        order.append((best, gains[best]))
        chosen.append(best)
    return order


def test_greedy_gains_equal_plain_loops(case):
    bits, similarity, reference_bits, reference = case
    result = np.asarray(
        sets.by_gain(codes.pack(jnp.asarray(bits)), jnp.asarray(similarity), reference).score
    )
    for i in range(len(bits)):
        order = greedy(bits[i], similarity[i], reference_bits, reference.values)
        lowest = np.minimum.accumulate([gain for _, gain in order])
        expected = {region: gain for (region, _), gain in zip(order, lowest, strict=True)}
        np.testing.assert_allclose(
            result[i], [expected[t] for t in range(1, bits.shape[1])], rtol=1e-4, atol=1e-5
        )


def test_an_equal_code_adds_nothing(case):
    bits, similarity, _, reference = case
    result = np.asarray(
        sets.by_gain(codes.pack(jnp.asarray(bits)), jnp.asarray(similarity), reference).score
    )
    assert min(result[1, 1], result[1, 2]) <= 0


def test_the_first_region_of_a_set_is_the_best_alone(case):
    bits, similarity, _, reference = case
    packed = codes.pack(jnp.asarray(bits))
    alone = np.asarray(evidence.rewards(packed, jnp.asarray(similarity), reference))
    result = np.asarray(sets.by_gain(packed, jnp.asarray(similarity), reference).score)
    for own, gains in zip(alone, result, strict=True):
        assert gains[own.argmax()] == gains.max() == pytest.approx(own.max(), rel=1e-4, abs=1e-5)


def test_turns_judge_regions_beside_those_taken_before(case):
    bits, _, _, _ = case
    alone = np.array([[0.3, 0.9, 0.8], [0.2, 0.1, 0.4]], np.float32)
    falls = np.array([0.0, 0.5, 0.6], np.float32)  # what each region loses after the first turn

    def scores(kept):
        taken = kept[:, 1:].any(1, keepdims=True)
        return jnp.asarray(alone) - jnp.where(taken, jnp.asarray(falls)[None], 0.0)

    kept = jnp.arange(4)[None] == jnp.zeros((2, 1), int)
    greedy = sets.by_turns(scores, kept)
    # Photo 0 takes region 2 (.9), then region 1 (.3), then region 3 (.2).
    np.testing.assert_allclose(greedy.score[0], [0.3, 0.9, 0.2], atol=1e-6)
    np.testing.assert_array_equal(greedy.turn[0], [1, 0, 2])
    # Photo 1 takes region 3 (.4), then region 1 (.2), then region 2 (-.4).
    np.testing.assert_allclose(greedy.score[1], [0.2, -0.4, 0.4], atol=1e-6)


def test_rewards_beside_kept_codes_equal_those_of_the_nearest_code(case):
    bits, similarity, reference_bits, reference = case
    packed = codes.pack(jnp.asarray(bits))
    kept = jnp.asarray(np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]], bool))
    result = np.asarray(evidence.rewards(packed, jnp.asarray(similarity), reference, kept))
    for i in range(len(bits)):
        nearest = [
            min((bits[i, t] != x).sum() for t in range(4) if kept[i, t]) for x in reference_bits
        ]
        for region in range(1, 4):
            total = 0.0
            for j, other in enumerate(reference_bits):
                after = min(nearest[j], (bits[i, region] != other).sum())
                worth = reference.values[j, :, after] - reference.values[j, :, nearest[j]]
                total += (1 - similarity[i, j]) * worth[0] + similarity[i, j] * worth[1]
            assert result[i, region - 1] == pytest.approx(total / NUM_REFERENCE, abs=1e-5)
