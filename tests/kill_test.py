"""A run that is killed with SIGKILL in each stage and resumed equals an undisturbed run."""

import json
import os
import signal
import subprocess
import sys
from typing import Any

import jax
import pytest
from tiny_run import assert_same, read

# A thread of the run itself waits for a file of the stage and kills the run, so that the kill is in
# time even on a busy machine.
RUN = """
import os, pathlib, runpy, signal, sys, threading, time

def watch(workdir, pattern):
    while not any(pathlib.Path(workdir).glob(pattern)):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

workdir, pattern = sys.argv[1:]
if pattern:
    threading.Thread(target=watch, args=(workdir, pattern), daemon=True).start()
sys.argv = ["mch_jax.main", "--config=tests/tiny_run.py", f"--workdir={workdir}"]
runpy.run_module("mch_jax.main", run_name="__main__")
"""

# Files that exist once a stage has begun, and once it has ended.
STAGES = {
    "base": ("checkpoints/base/[0-9]*", "checkpoints/agent/*"),
    "agent": ("checkpoints/agent/[0-9]*", "encoder.npz"),
    "encode": ("encoder.npz", "codes/database.npz"),
    "evaluate": ("codes/database.npz", "results.json"),
    "report": ("results.json", "report/index.html"),
}


@pytest.fixture(scope="module")
def start():
    """Starts the tiny run in a separate process that uses the tests' cache of compiled programs."""
    # As many devices as in the tests, since rounding depends on their number.
    config: Any = jax.config  # its options have no types
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8",
        "JAX_COMPILATION_CACHE_DIR": config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    }

    def start(workdir, pattern=""):
        return subprocess.run(
            [sys.executable, "-c", RUN, workdir, pattern],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return start


def test_a_run_killed_in_every_stage_equals_an_undisturbed_one(finished, tmp_path, start):
    for stage, (begun, ended) in STAGES.items():
        result = start(tmp_path, begun)
        assert result.returncode == -signal.SIGKILL, (stage, result.stderr)
        assert any(tmp_path.glob(begun)), stage
        assert not any(tmp_path.glob(ended)), f"{stage} had ended before the kill"
    result = start(tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same(read(finished), read(tmp_path))
    assert (tmp_path / "report" / "index.html").exists()
    lines = [
        [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in (finished, tmp_path)
    ]
    assert lines[0] == lines[1]
