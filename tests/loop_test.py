import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax.files import Checkpoints
from mch_jax.training import logs, loop, termination


def train(workdir, step=lambda state, batch: state + batch, num_steps=10, **options):
    """Sums up the numbers 1, 2, ... and returns the total."""

    def guarded(state, batch):
        total = step(state["total"], batch)
        return {"total": total}, {"loss": total}

    def batches(start):
        return (jnp.float32(i) for i in range(start + 1, 99))

    state = loop.train(
        Checkpoints(workdir / "checkpoints" / "base"),
        logs.MetricsLog(workdir / "metrics.jsonl"),
        "base",
        {"total": jnp.float32(0)},
        num_steps,
        guarded,
        batches,
        log_every=4,
        **options,
    )
    return float(state["total"])


def test_a_loop_saves_and_logs(tmp_path):
    assert train(tmp_path) == 55
    assert [row["step"] for row in logs.read_metrics(tmp_path / "metrics.jsonl")] == [4, 8, 10]
    assert {x.name for x in (tmp_path / "checkpoints" / "base").iterdir()} == {"8", "10"}
    assert train(tmp_path) == 55  # no step is left


def test_the_distance_of_checkpoints_can_be_set(tmp_path):
    assert train(tmp_path, save_every=3) == 55
    assert {x.name for x in (tmp_path / "checkpoints" / "base").iterdir()} == {"9", "10"}


def test_sigterm_saves_the_current_step(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    termination.install()

    def step(state, batch):
        if batch == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return state + batch

    try:
        with pytest.raises(SystemExit) as stop:
            train(tmp_path, step)
    finally:
        signal.signal(signal.SIGTERM, before)
        termination._received.clear()
    assert stop.value.code == 143
    assert (tmp_path / "checkpoints" / "base" / "5").exists()
    assert train(tmp_path) == 55
    assert [row["step"] for row in logs.read_metrics(tmp_path / "metrics.jsonl")] == [4, 8, 10]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, value):
    """Step 7 is neither logged nor saved, and stops the run while step 8 is running."""
    steps = []

    def step(state, batch):
        steps.append(int(batch))
        return state + (value if batch == 7 else batch)

    with pytest.raises(ValueError, match=r"base/loss is (nan|inf) at step 7; the last checkpoint"):
        train(tmp_path, step)
    assert steps[-1] == 8
    assert {x.name for x in (tmp_path / "checkpoints" / "base").iterdir()} == {"4", "6"}
    assert train(tmp_path) == 55
