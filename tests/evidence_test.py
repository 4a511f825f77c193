import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import codes, pairs
from mch_jax.agent import evidence

NUM_BITS, NUM_CLASSES, NUM_REFERENCE = 9, 4, 30


class Case:
    """Five photos with three regions each, and reference photos."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.logits = rng.normal(size=(5, 3, NUM_BITS)).astype(np.float32)
        self.label_logits = rng.normal(size=(5, 3, NUM_CLASSES)).astype(np.float32)
        self.reference_logits = rng.normal(size=(NUM_REFERENCE, NUM_BITS)).astype(np.float32)
        self.labels = (rng.random((NUM_REFERENCE, NUM_CLASSES)) < 0.4).astype(np.uint8)
        self.labels[0] = 0
        self.calibration = {
            "shared": np.array([0.4, 0.3, 0.1, 0.1, 0.1], np.float32),
            "own": rng.normal(0, 0.1, (NUM_CLASSES, 5)).astype(np.float32),
            "bias": np.zeros(NUM_CLASSES, np.float32),
        }

    def packed(self, bits=slice(None)) -> jax.Array:
        return codes.pack(codes.sign(jnp.asarray(self.logits[..., bits])))

    def reference(self, bits=slice(None)) -> evidence.Reference:
        packed = np.asarray(codes.pack(codes.sign(self.reference_logits[:, bits])))
        return evidence.reference(packed, self.labels, NUM_BITS, 0.2)

    def state(self, bits=slice(None)) -> np.ndarray:
        logits = jnp.asarray(self.logits[..., bits])
        return np.asarray(
            evidence.states(
                self.packed(bits),
                logits,
                jnp.asarray(self.label_logits),
                self.calibration,
                self.reference(bits),
            )
        )


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def test_values_are_the_derivative_of_average_precision():
    counts = np.array([[[2, 1], [0, 3], [5, 0]], [[0, 4], [1, 1], [0, 2]]])
    result = np.asarray(evidence.values(counts, 0.0))

    def score(histogram, num_relevant):
        relevant, size = histogram[:, 1], histogram.sum(1)
        found = relevant.cumsum() - relevant / 2 + 0.5 * (relevant > 0)
        seen = size.cumsum() - size / 2 + 0.5
        return (relevant * found / seen).sum() / num_relevant

    for i, histogram in enumerate(counts.astype(float)):
        total = histogram[:, 1].sum()
        for distance in range(3):
            for kind in range(2):
                if kind and not histogram[distance, 1]:
                    continue  # not differentiable: the first relevant item adds half an item
                step = np.zeros_like(histogram)
                step[distance, kind] = 1e-5
                slope = (score(histogram + step, total) - score(histogram - step, total)) / 2e-5
                expected = slope * histogram.sum()
                assert result[i, kind, distance] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_recall_adds_to_the_value_of_relevant_items_at_distance_0():
    counts = np.array([[[2, 1], [0, 3]]])
    both = [np.asarray(evidence.values(counts, weight)) for weight in (0.0, 0.5)]
    difference = both[1] - both[0]
    assert difference[0, 1, 0] == pytest.approx(0.5 * 6 / 4, rel=1e-5)
    assert np.count_nonzero(difference) == 1


def test_a_photo_is_not_an_item_of_its_own_query(case):
    reference = case.reference()
    packed, labels = np.asarray(reference.packed), case.labels
    words = pairs.pack_labels(labels)
    for i in (0, 1):
        histogram = np.zeros((NUM_BITS + 1, 2), int)
        for j in range(NUM_REFERENCE):
            if j != i:
                distance = np.bitwise_count(packed[i] ^ packed[j]).sum()
                histogram[distance, int((words[i] & words[j]).any())] += 1
        expected = np.asarray(evidence.values(histogram[None], 0.2))[0]
        np.testing.assert_allclose(reference.values[i], expected, rtol=1e-5, atol=1e-6)


def test_rewards_equal_a_double_loop(case):
    reference = case.reference()
    similarity = np.random.default_rng(1).random((5, NUM_REFERENCE)).astype(np.float32)
    result = evidence.rewards(case.packed(), jnp.asarray(similarity), reference)
    packed = np.asarray(case.packed())
    for i in range(5):
        for region in range(1, 3):
            expected = 0.0
            for j in range(NUM_REFERENCE):
                own, other = (
                    np.bitwise_count(packed[i, t] ^ reference.packed[j]).sum() for t in (0, region)
                )
                worth = reference.values[j, :, min(own, other)] - reference.values[j, :, own]
                expected += (1 - similarity[i, j]) * worth[0] + similarity[i, j] * worth[1]
            assert result[i, region - 1] == pytest.approx(expected / NUM_REFERENCE, abs=1e-5)


def test_similarity_probability_is_the_probability_of_a_shared_label(case):
    logits = case.label_logits[:, 0]
    result = evidence.similarity_probability(jnp.asarray(logits), case.labels)
    prob = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = 1 - np.prod(1 - prob[:, None] * case.labels[None], axis=2)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert np.all(result[:, 0] == 0)  # a photo without labels is similar to none


def test_the_posterior_learns_which_region_is_informative():
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 3)) < 0.3).astype(np.uint8)
    noise = rng.normal(size=(400, 6, 3)).astype(np.float32)
    noise[:, 0] += 4 * labels - 2  # only the whole photo is informative
    fitted = evidence.fit_posterior(jnp.asarray(noise), labels)
    logits = evidence.posterior(fitted, jnp.asarray(noise))
    assert np.mean((logits > 0) == labels) > 0.95


def test_states_do_not_depend_on_the_order_of_bits(case):
    state = case.state()
    assert state.shape == (5, 2, len(evidence.NAMES))
    order = np.random.default_rng(2).permutation(NUM_BITS)
    np.testing.assert_allclose(case.state(order), state, rtol=1e-4, atol=1e-5)


def test_states_hold_expected_rewards_and_counts(case):
    state = dict(zip(evidence.NAMES, np.moveaxis(case.state(), -1, 0), strict=True))
    np.testing.assert_allclose(
        state["reward"], state["benefit"] + state["cost"], rtol=1e-4, atol=1e-6
    )
    whole = evidence.similarity_probability(jnp.asarray(case.label_logits[:, 0]), case.labels)
    expected = evidence.rewards(case.packed(), whole, case.reference())
    np.testing.assert_allclose(state["reward_whole"], expected, rtol=1e-4, atol=1e-5)
    packed = np.asarray(case.packed())
    assert state["apart"][3, 1] == np.bitwise_count(packed[3, 0] ^ packed[3, 2]).sum()
    distance = np.bitwise_count(packed[3, 2] ^ np.asarray(case.reference().packed)).sum(1)
    assert state["nearest_region"][3, 1] == distance.min()
    assert state["ball_region"][3, 1] == pytest.approx(np.log((distance <= 2).mean() + 1e-4))


def test_normalized_states_have_mean_0_and_deviation_1(case):
    state = case.state()
    flat = state.reshape(-1, state.shape[-1])
    normal = np.asarray(evidence.normalize(evidence.normalizer(state), flat))
    np.testing.assert_allclose(normal.mean(0), 0, atol=2e-3)
    changes = flat.std(0) > 1e-6
    np.testing.assert_allclose(normal.std(0)[changes], 1, rtol=1e-3)
