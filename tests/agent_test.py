import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import agent, codes, methods, pairs
from mch_jax.codes import Encoding
from mch_jax.methods.base import loss_table
from mch_jax.training import parallel

NUM_BITS, NUM_TRAIN = 35, 90


class Case:
    """Four images with two codes each, one region of each, and a training set."""

    def __init__(self):
        rng = np.random.default_rng(0)
        signs = rng.choice(np.array([-1, 1], np.int8), (4, 3, NUM_BITS))
        signs[1, 2] = signs[1, 0]  # the second image's region has the image's own code
        self.own, self.region = signs[:, :2], signs[:, 2]
        self.train = rng.choice(np.array([-1, 1], np.int8), (NUM_TRAIN, NUM_BITS))
        self.labels = (rng.random((4, 40)) < 0.1).astype(np.uint8)
        self.train_labels = (rng.random((NUM_TRAIN, 40)) < 0.1).astype(np.uint8)
        self.similar = self.labels.astype(int) @ self.train_labels.T > 0
        self.count = rng.integers(0, 3, NUM_TRAIN).astype(np.int32)

    def images(self) -> list[jax.Array]:
        own, region = (codes.pack(jnp.asarray(x)) for x in (self.own, self.region))
        return [own, region, jnp.asarray(pairs.pack_labels(self.labels))]

    def training_set(self) -> list[np.ndarray]:
        """Packed codes, packed labels and counts, the training images first."""
        packed = np.asarray(codes.pack(jnp.asarray(self.train)))
        return [packed, pairs.pack_labels(self.train_labels), self.count]

    def histogram(self) -> np.ndarray:
        own, region, own_labels = self.images()
        packed, labels, count = map(jnp.asarray, self.training_set())
        result = agent.reward_histogram(
            own, region, own_labels, packed.T, labels.T, count, NUM_BITS
        )
        return np.asarray(result)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def test_figure_1():
    # The image has the code 010, a similar training image 101, a dissimilar one 010. The region's
    # code 101 reduces the distance to the first from 3 bits to 0, and to the second not at all.
    packed = codes.pack(jnp.array([[-1, 1, -1], [1, -1, 1]], jnp.int8))
    histogram = agent.reward_histogram(
        packed[None, :1],
        packed[1:],
        jnp.array([[1]], jnp.uint32),
        packed[::-1].T,
        jnp.array([[1, 2]], jnp.uint32),
        jnp.array([1, 1]),
        3,
    )
    assert histogram.tolist() == [[[0, 0, 0, 0], [-1, 0, 0, 1]]]
    # If the loss of a similar pair is d, the sum falls by 3 and the mean over two pairs by 3 / 2.
    table = jnp.array([[3.0, 2, 1, 0], [0, 1, 2, 3]])
    assert agent.rewards(histogram, table, 2).tolist() == [1.5]


def test_state_is_two_features_and_two_codes():
    none = jnp.zeros((2, 0))
    image = Encoding(jnp.full((2, 5), 2.0), jnp.array([[0.5, -3.0, 0.0]] * 2), none)
    region = Encoding(jnp.full((2, 5), 7.0), jnp.array([[-0.5, 3.0, 1.0]] * 2), none)
    state = agent.states(image, region)
    assert state.shape == (2, 2 * 5 + 2 * 3)
    assert state[0].tolist() == [2] * 5 + [7] * 5 + [1, -1, 1] + [-1, 1, 1]


def test_reward_equals_the_double_loop(case):
    objective = methods.objective("dch", NUM_BITS)
    table = loss_table(objective, NUM_BITS, 0.3)
    result = agent.rewards(jnp.asarray(case.histogram()), table, int(case.count.sum()))
    table = np.asarray(table, np.float64)
    expected = np.zeros(4)
    for i in range(4):
        for j in range(NUM_TRAIN):
            distances = [(code != case.train[j]).sum() for code in (*case.own[i], case.region[i])]
            loss = table[int(case.similar[i, j])]
            # Eq. 6: the loss before minus the loss after, with the distance of Eq. 5.
            expected[i] += case.count[j] * (loss[min(distances[:2])] - loss[min(distances)])
    np.testing.assert_allclose(result, expected / case.count.sum(), rtol=1e-5, atol=1e-7)


def test_an_equal_code_has_no_reward(case):
    histogram = case.histogram()
    assert not histogram[1].any()
    assert histogram[[0, 2, 3]].any((1, 2)).all()
    # As many pairs leave distances as reach others, and no distance grows.
    np.testing.assert_array_equal(histogram.sum(-1), 0)
    assert (histogram.cumsum(-1) <= 0).all()


@pytest.mark.parametrize("num_devices", [1, 2, 3, 8])
def test_histogram_is_the_same_on_any_number_of_devices(case, num_devices):
    shards = [
        parallel.split_batch(parallel.pad_to_multiple(x, num_devices), num_devices)
        for x in case.training_set()
    ]

    def one_device(state, images, packed, labels, count):
        own, region, own_labels = images
        histogram = agent.reward_histogram(
            own, region, own_labels, packed.T, labels.T, count, NUM_BITS
        )
        return state, jax.lax.psum(histogram, parallel.AXIS)

    mapped = parallel.over_devices(one_device, (None, None, 0, 0, 0), num_devices)
    _, histogram = mapped(jnp.int32(0), case.images(), *shards)
    np.testing.assert_array_equal(histogram, case.histogram())


def test_reinforce_loss_is_log_probability_times_advantage():
    logits = jnp.array([[0.0, 0.0], [1.0, 3.0]])
    loss = agent.reinforce_loss(
        logits, jnp.array([agent.DISCARD, agent.KEEP]), jnp.array([2.0, -5.0])
    )
    keep_prob = 1 / (1 + np.exp(1 - 3))
    np.testing.assert_allclose(loss, [-2 * np.log(0.5), 5 * np.log(keep_prob)], rtol=1e-6)
    assert (agent.DISCARD, agent.KEEP) == (0, 1)


def test_discarding_has_no_reward():
    logits, reward = jnp.array([[0.3, -0.2]]), jnp.array([4.0])
    action = jnp.array([agent.DISCARD])
    assert agent.reinforce_loss(logits, action, reward * (action == agent.KEEP)).tolist() == [0]


def test_gradient_of_the_expected_loss_is_the_mean_over_actions(key):
    logits = jax.random.normal(key, (5, 2))
    reward = jnp.array([1.0, -2.0, 0.0, 0.5, -0.1])
    mean = 0
    for action in (agent.DISCARD, agent.KEEP):
        value = reward * (action == agent.KEEP)
        gradient = jax.grad(
            lambda x, a=action, v=value: agent.reinforce_loss(x, jnp.full(5, a), v).sum()
        )(logits)
        mean += jax.nn.softmax(logits)[:, action, None] * gradient
    expected = jax.grad(lambda x: agent.expected_loss(x, reward).sum())(logits)
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-7)


def test_no_gradient_flows_into_the_reward():
    def total(x):
        loss = agent.reinforce_loss(jnp.ones((1, 2)), jnp.array([1]), x[None])
        return (loss + agent.expected_loss(jnp.ones((1, 2)), x[None])).sum()

    assert jax.grad(total)(jnp.array(3.0)) == 0


def test_entropy():
    logits = jnp.array([[0.0, 0.0], [-1000.0, 1000.0], [0.0, np.log(3)]])
    expected = [np.log(2), 0, -0.25 * np.log(0.25) - 0.75 * np.log(0.75)]
    np.testing.assert_allclose(agent.entropy(logits), expected, rtol=1e-6, atol=1e-7)
