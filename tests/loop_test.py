import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax.training import logs, loop, termination
from mch_jax.training.run import Run


@pytest.fixture
def run(tmp_path):
    """What a loop needs of a run: its workdir, and a config without TensorBoard."""
    run = object.__new__(Run)
    object.__setattr__(run, "workdir", tmp_path)
    object.__setattr__(run, "config", {})
    return run


def train(run, step=lambda state, batch: state + batch, num_steps=10):
    def guarded(state, batch):
        total = step(state["total"], batch)
        return {"total": total}, {"loss": total}

    def batches(start):
        return (jnp.float32(i) for i in range(start + 1, 99))

    state = {"total": jnp.float32(0)}
    return loop.train(run, "base", state, num_steps, guarded, batches, log_every=4)["total"]


def test_a_loop_saves_and_logs_on_the_way(run, tmp_path):
    assert float(train(run)) == 55
    assert [row["step"] for row in logs.read_metrics(tmp_path / "metrics.jsonl")] == [4, 8, 10]
    assert {x.name for x in (tmp_path / "checkpoints" / "base").iterdir()} == {"8", "10"}
    assert float(train(run)) == 55  # nothing is left to do


def test_sigterm_saves_the_step_it_came_in(run, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    termination.install()

    def step(state, batch):
        if batch == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return state + batch

    try:
        with pytest.raises(SystemExit) as stop:
            train(run, step)
    finally:
        signal.signal(signal.SIGTERM, before)
        termination._noted.clear()
    assert stop.value.code == 143
    assert (tmp_path / "checkpoints" / "base" / "5").exists()
    assert float(train(run)) == 55
    assert [row["step"] for row in logs.read_metrics(tmp_path / "metrics.jsonl")] == [4, 8, 10]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(run, tmp_path, value):
    """Step 7 is neither logged nor saved; it stops the run while step 8 is under way."""
    steps = []

    def step(state, batch):
        steps.append(int(batch))
        return state + (value if batch == 7 else batch)

    with pytest.raises(ValueError, match=r"base/loss is (nan|inf) at step 7; the last checkpoint"):
        train(run, step)
    assert steps[-1] == 8
    assert {x.name for x in (tmp_path / "checkpoints" / "base").iterdir()} == {"4", "6"}
    assert float(train(run)) == 55
