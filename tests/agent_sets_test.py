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
        sets.greedy_gains(codes.pack(jnp.asarray(bits)), jnp.asarray(similarity), reference)
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
        sets.greedy_gains(codes.pack(jnp.asarray(bits)), jnp.asarray(similarity), reference)
    )
    assert min(result[1, 1], result[1, 2]) <= 0


def test_the_first_region_of_a_set_is_the_best_alone(case):
    bits, similarity, _, reference = case
    packed = codes.pack(jnp.asarray(bits))
    alone = np.asarray(evidence.rewards(packed, jnp.asarray(similarity), reference))
    result = np.asarray(sets.greedy_gains(packed, jnp.asarray(similarity), reference))
    for own, gains in zip(alone, result, strict=True):
        assert gains[own.argmax()] == gains.max() == pytest.approx(own.max(), rel=1e-4, abs=1e-5)
