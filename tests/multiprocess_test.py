"""Two processes of four devices each against one of eight, by the losses and a checkpoint."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mch_jax import checkpoint, logs, parallel

ROOT = Path(__file__).parents[1]

# A run of the tiny scenes up to a stage: devices, workdir, stage, processes, process, port.
SCRIPT = """
import sys
import jax

devices, workdir, stage, count, process, port = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", int(devices))
from mch_jax import main, parallel

if int(count) > 1:
    parallel.start(f"localhost:{port}", int(count), int(process))
from pathlib import Path
from tiny_run import tiny

main.run_stages(tiny(), Path(workdir), stage)
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def train(workdir, stage, *, processes, devices):
    """Runs a stage and returns the lines of metrics.jsonl."""
    port, environment = free_port(), dict(os.environ)
    cache = Path(environment.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mch_jax" / "tests"
    environment |= {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "JAX_PLATFORMS": "cpu",
    }
    arguments = [str(x) for x in (devices, workdir, stage, processes)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments, str(process), str(port)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for process in range(processes)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return logs.read_metrics(workdir / "metrics.jsonl")


def assert_equal_losses(found, expected):
    assert [(row["stage"], row["step"]) for row in found] == [
        (row["stage"], row["step"]) for row in expected
    ]
    for one, two in zip(found, expected, strict=True):
        for name in two:
            if name != "stage":
                np.testing.assert_allclose(one[name], two[name], rtol=1e-6, atol=1e-7)


def test_two_processes_train_as_one_and_another_shape_goes_on(finished, tmp_path):
    expected = logs.read_metrics(finished / "metrics.jsonl")  # one process of eight devices
    found = train(tmp_path, "agent", processes=2, devices=4)
    assert_equal_losses(found, expected)
    # Nothing is left of the second process, and nothing is there that the first did not finish.
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert not (tmp_path / "codes").exists()
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints" / "base").iterdir())
    shutil.rmtree(tmp_path / "checkpoints" / "base" / str(steps[-1]))
    shutil.rmtree(tmp_path / "checkpoints" / "agent")
    resumed = train(tmp_path, "agent", processes=1, devices=1)
    assert_equal_losses(resumed, expected)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == json.loads((finished / "config.json").read_text())


def test_wrong_numbers_of_processes_are_named():
    for arguments in (("", 2, 0), ("localhost:1", 2, 2), ("localhost:1", 1, -1)):
        with pytest.raises(ValueError, match="expected HOST:PORT of the first process"):
            parallel.start(*arguments)


def test_another_process_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_writes_files", False)
    checkpoint.write_json(tmp_path / "a.json", {})
    log = logs.MetricsLog(tmp_path / "metrics.jsonl")
    log.write("base", 1, loss=1.0)
    log.rewind("base", 0)
    assert list(tmp_path.iterdir()) == []
