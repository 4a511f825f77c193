"""Locks: the second process gets one line, and a dead process does not block."""

import os
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import tiny

from mch_jax import pipeline
from mch_jax.evaluation import rival_table
from mch_jax.files import codes_file, locks, remove_temporary, whole_file
from mch_jax.training import claims

HOLD = """
import sys
from mch_jax.files import locks

with locks.held(sys.argv[1], "workdir w", "wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `tmp_path` as a workdir."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / ".lock"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)


def test_the_second_run_names_the_first_and_a_dead_one_does_not_block(holder, tmp_path):
    expected = (
        f"workdir {tmp_path} is in use by process {holder.pid} on {socket.gethostname()}; wait for "
        "its end, or use another workdir"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        pipeline.run_stages(tiny(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".lock-holder"}
    holder.kill()
    holder.wait()
    assert (tmp_path / ".lock").exists()
    left = tmp_path / ".results.new-0123456789abcdef.json"
    left.write_text("{")
    (tmp_path / "checkpoints" / "base" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    (tmp_path / "mine.json").write_text("{}")
    with claims.claimed(tmp_path):
        text = (tmp_path / ".lock-holder").read_text()
        assert text == f"process {os.getpid()} on {socket.gethostname()}"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "mine.json"}
    assert not list((tmp_path / "checkpoints" / "base").iterdir())


def test_the_command_exits_with_status_2(holder, tmp_path):
    command = [sys.executable, "-m", "mch_jax.main", "--config=tests/tiny_run.py"]
    result = subprocess.run(
        [*command, f"--workdir={tmp_path}"], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"is in use by process {holder.pid} on " in result.stderr


def test_a_lock_is_taken_once_and_leaves_no_file(tmp_path):
    path = tmp_path / "lock"
    with locks.held(path, "x", "wait"):
        with pytest.raises(ValueError, match="x is in use by process"), locks.held(path, "x", ""):
            raise AssertionError
        assert path.exists()
    assert not list(tmp_path.iterdir())


def test_a_failed_run_leaves_no_empty_workdir(tmp_path):
    config = tiny()
    config.dataset.name, config.dataset.root = "folder", str(tmp_path / "absent")
    config.dataset.settings = {}
    with pytest.raises(ValueError, match="expected an existing folder"):
        pipeline.run_stages(config, tmp_path / "workdir")
    assert not (tmp_path / "workdir").exists()


def test_temporary_names_are_random_and_only_they_are_removed(tmp_path):
    names = set()
    for _ in range(2):
        with whole_file(tmp_path / "a.b.npz") as temporary:
            temporary.write_text("whole")
            names.add(temporary.name)
            assert temporary.suffix == ".npz"
    assert len(names) == 2
    kept = ["a.b.npz", ".hidden.npz", ".notes-1.txt", "5"]
    for name in (*kept, *names, ".results-4711.json", ".database-2048-17.npz"):
        (tmp_path / name).write_text("")
    remove_temporary(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_the_fair_comparison_keeps_out_of_a_run_in_progress(holder, tmp_path):
    file = codes_file.CodeFile(
        np.zeros((1, 1), np.uint8), np.zeros(1, np.int64), np.array(["a"]),
        np.ones(1, np.float32), np.zeros((1, 4), np.int32), np.ones((1, 2), np.uint8), 8,
    )  # fmt: skip
    codes_file.save(tmp_path / "codes" / "query.npz", file)
    with pytest.raises(ValueError, match=f"is in use by process {holder.pid} on "):
        rival_table.compare(tmp_path)
