"""The steps of training run under `jax.shard_map` as under `jax.pmap`, with one line changed."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import shrunk

from configs import default
from mch_jax import methods
from mch_jax.agent import evidence
from mch_jax.agent import state as agent_state
from mch_jax.models import AlexNet
from mch_jax.training import base, base_step, cross_fit, paper, parallel, policy
from mch_jax.training.network import random_params

NUM_STEPS, BATCH, NUM_BITS, HIDDEN, NUM_CLASSES, NUM_TRAIN = 3, 8, 12, 16, 5, 19
DEVICES = (1, 2, 8)
MODEL = AlexNet(NUM_BITS, HIDDEN, 1 / 16)


def config() -> Any:
    made: Any = shrunk(default.get_config())
    made.base.update(batch_size=BATCH, dropout=True)
    made.agent.update(batch_size=BATCH, dropout=0.5)
    return made


def batches(**more):
    """Returns batches of random photos with packed labels, and what `more` draws for each."""
    rng = np.random.default_rng(0)
    return [
        {
            "image": rng.integers(0, 256, (BATCH, 64, 64, 3), np.uint8),
            "labels": rng.integers(1, 2**NUM_CLASSES, (BATCH, 1)).astype(np.uint32),
            **{name: draw(rng) for name, draw in more.items()},
        }
        for _ in range(NUM_STEPS)
    ]


def normal(*shape):
    return lambda rng: rng.normal(size=shape).astype(np.float32)


def base_training(num_devices):
    """Returns states and scalars of base training with DCH on photos."""
    this = config()
    tx = base.optimizer(this.base, NUM_STEPS)
    loss_fn = functools.partial(
        base_step.objective_loss, model=MODEL, objective=methods.objective("dch", NUM_BITS),
        similar_fraction=0.4, num_classes=NUM_CLASSES, dropout=True, label_weight=0.0,
    )  # fmt: skip
    step = functools.partial(
        base_step.train_step, loss_fn=loss_fn, prepare=base.preparation(this), tx=tx,
        num_steps=NUM_STEPS,
    )  # fmt: skip
    mapped = parallel.over_devices(step, (None, 0, None, None), num_devices)
    state = base_step.initial_state(random_params(MODEL, 63, 0), tx)
    return stepped(
        state,
        batches(),
        lambda state, batch: mapped(state, batch, jax.random.key(0), {}),
        num_devices,
    )


def agent_training(num_devices):
    """Returns states and scalars of the agent's training by the paper's recipe on photos."""
    this = config()
    tx = policy.optimizer(this)
    step = functools.partial(
        paper.train_step, model=MODEL, crop_ratio=0.5, input_size=63, num_train=NUM_TRAIN,
        loss_table=paper.loss_table(methods.objective("dch", NUM_BITS), NUM_BITS, 0.4),
        update=policy.update(this, tx),
    )  # fmt: skip
    mapped = parallel.over_devices(step, (None, 0, 0, None, None), num_devices)
    rng = np.random.default_rng(1)
    train_set = paper.shared_train_set(
        normal(NUM_TRAIN, NUM_BITS)(rng),
        rng.integers(1, 2**NUM_CLASSES, (NUM_TRAIN, 1)).astype(np.uint32),
        num_devices,
    )
    params = random_params(MODEL, 63, 0)
    params["hash"]["kernel"] = params["hash"]["kernel"] * 30
    drawn = batches(
        features=normal(BATCH, HIDDEN), logits=normal(BATCH, NUM_BITS),
        label_logits=normal(BATCH, 0),
    )  # fmt: skip
    return stepped(
        policy.initial_state(this, agent_state.width(HIDDEN, NUM_BITS), tx),
        drawn,
        lambda state, batch: mapped(state, batch, train_set, params, jax.random.key(0)),
        num_devices,
    )


def cross_fit_training(num_devices):
    """Returns states and scalars of the agent's training on evidence."""
    this, width = config(), len(evidence.NAMES)
    tx = policy.optimizer(this)
    step = functools.partial(cross_fit.train_step, update=policy.update(this, tx))
    mapped = parallel.over_devices(step, (None, 0, None), num_devices)
    rng = np.random.default_rng(2)
    drawn = [
        {"state": normal(BATCH, width)(rng), "reward": normal(BATCH)(rng)} for _ in range(NUM_STEPS)
    ]
    return stepped(
        policy.initial_state(this, width, tx),
        drawn,
        lambda state, batch: mapped(state, batch, jax.random.key(0)),
        num_devices,
    )


def stepped(state, batches, step, num_devices):
    """Returns the state and the scalars after each step, on the host."""
    results = []
    for batch in batches:
        state, scalars = step(state, parallel.split_batch(batch, num_devices))
        results.append(jax.device_get((state, scalars)))
    return results


TRAININGS = {"base": base_training, "agent": agent_training, "cross_fit": cross_fit_training}


@pytest.fixture(scope="module")
def results():
    """Returns a function from training, mapping and number of devices to what training returns."""

    @functools.cache
    def result(training, mapping, num_devices):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parallel, "mapped_over", getattr(parallel, mapping))
            return TRAININGS[training](num_devices)

    return result


@pytest.mark.parametrize(
    ("training", "num_devices"),
    [*((training, count) for training in ("base", "agent") for count in DEVICES), ("cross_fit", 8)],
)
def test_shard_map_gives_the_results_of_pmap(results, training, num_devices):
    expected = results(training, "mapped_over", num_devices)
    found = results(training, "sharded_over", num_devices)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    first, last = found[0][0].params, found[-1][0].params
    changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), first, last)
    assert max(jax.tree.leaves(changes)) > 1e-5


@pytest.mark.parametrize("training", ["base", "agent"])
def test_shard_map_gives_the_same_on_1_2_and_8_devices(results, training):
    expected = results(training, "sharded_over", 1)
    for num_devices in DEVICES[1:]:
        found = results(training, "sharded_over", num_devices)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), found, expected
        )


def test_shard_map_shares_the_batch_and_replicates_the_state():
    def step(state, batch):
        total = jax.lax.psum(batch["x"].sum(), parallel.AXIS)
        rows = jax.lax.all_gather(parallel.example_rows(2), parallel.AXIS, tiled=True)
        return state + total, rows

    mapped = parallel.sharded_over(step, (None, 0), jax.local_devices()[:4])
    batch = {"x": parallel.split_batch(np.arange(8.0, dtype=np.float32), 4)}
    state, rows = mapped(parallel.replicated(jnp.float32(1), 4), batch)
    assert float(state) == 29
    assert rows.tolist() == list(range(8))
    assert state.sharding.is_fully_replicated
    assert len(state.sharding.device_set) == 4


def test_one_line_of_the_project_maps_steps():
    lines = inspect.getsource(parallel.over_devices).splitlines()
    assert sum("mapped_over(" in line for line in lines) == 1
    both = [inspect.signature(x) for x in (parallel.mapped_over, parallel.sharded_over)]
    assert both[0] == both[1]
