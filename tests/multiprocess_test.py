"""Two processes with four devices each give the losses of one process with eight."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tiny_run import tiny

from mch_jax import pipeline
from mch_jax.files import processes, write_json
from mch_jax.training import logs, loop, parallel

ROOT = Path(__file__).parents[1]

# At the learning rate of the tiny run, the effect of rounding grows too fast to compare losses.
CHANGES: Any = {"base__learning_rate": 1e-5}

# Trains the tiny run up to the agent. Arguments: devices, workdir, processes, process, port.
SCRIPT = """
import pathlib
import sys
import jax

devices, workdir, count, process, port = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", int(devices))
from mch_jax.training import parallel

if int(count) > 1:
    parallel.start(f"localhost:{port}", int(count), int(process))
from multiprocess_test import run_all_steps

run_all_steps(pathlib.Path(workdir))
"""


def run_all_steps(workdir):
    """Trains in this process and logs every step."""
    train_loop = loop.train

    def log_each(*arguments, log_every=1):
        del log_every
        return train_loop(*arguments, log_every=1)

    with mock.patch.object(loop, "train", log_each):
        pipeline.run_stages(tiny(**CHANGES), workdir, "agent")
    return logs.read_metrics(workdir / "metrics.jsonl")


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def train(workdir, *, processes, devices):
    """Trains in separate processes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mch_jax" / "tests"
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PLATFORMS": "cpu",
    }
    arguments = [str(x) for x in (devices, workdir, processes)]
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments, str(process), port],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for process in range(processes)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return logs.read_metrics(workdir / "metrics.jsonl")


def assert_equal_losses(found, expected):
    assert [(row["stage"], row["step"]) for row in found] == [
        (row["stage"], row["step"]) for row in expected
    ]
    for one, two in zip(found, expected, strict=True):
        for name in two:
            if name != "stage":  # seven digits, the last one rounded
                np.testing.assert_allclose(one[name], two[name], rtol=5e-7, atol=1e-8, err_msg=name)


@pytest.mark.slow
def test_two_processes_equal_one_and_another_number_resumes(tmp_path):
    expected = run_all_steps(tmp_path / "one")  # one process of eight devices
    assert len(expected) == 15 + 6
    two = tmp_path / "two"
    assert_equal_losses(train(two, processes=2, devices=4), expected)
    # The second process leaves no file, and the first process none that is incomplete.
    assert not [path for path in two.rglob("*") if path.name.startswith(".")]
    assert not (two / "codes").exists()
    steps = sorted(int(path.name) for path in (two / "checkpoints" / "base").iterdir())
    assert len(steps) == 2
    shutil.rmtree(two / "checkpoints" / "base" / str(steps[-1]))
    shutil.rmtree(two / "checkpoints" / "agent")
    assert_equal_losses(train(two, processes=1, devices=1), expected)


def test_wrong_numbers_of_processes_are_refused():
    for arguments in (("", 2, 0), ("localhost:1", 2, 2), ("localhost:1", 1, -1), ("a:b", 2, 0)):
        with pytest.raises(ValueError, match="expected HOST:PORT of the first process"):
            parallel.start(*arguments)


def test_a_missing_first_process_is_reported():
    port = free_port()
    with pytest.raises(
        ValueError, match=f"does not answer at localhost:{port}: Connection refused"
    ):
        parallel.start(f"localhost:{port}", 2, 1, patience=0.0)
    with (
        socket.create_server(("", 0)) as taken,
        pytest.raises(ValueError, match="cannot listen on port .*: Address already in use"),
    ):
        parallel.start(f"localhost:{taken.getsockname()[1]}", 2, 0)


def test_only_the_first_process_writes_files(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_is_writer", False)
    write_json(tmp_path / "a.json", {})
    log = logs.MetricsLog(tmp_path / "metrics.jsonl")
    log.write("base", 1, loss=1.0)
    assert list(tmp_path.iterdir()) == []
