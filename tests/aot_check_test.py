"""The compilation of programs for accelerators without a device."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "launch" / "aot_check.py"


@pytest.fixture(scope="module")
def names():
    return runpy.run_path(str(SCRIPT))


def run(*arguments, environment=None):
    """Returns the finished process of the script."""
    command = [sys.executable, str(SCRIPT), *arguments]
    environment = {**os.environ, **(environment or {})}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("kind", ["program", "target"])
def test_an_unknown_name_is_one_line_with_the_choices(kind, names):
    result = run(f"--{kind}s=nothing")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert f"unknown {kind} 'nothing'" in result.stderr
    assert all(name in result.stderr for name in names[f"{kind}s".upper()])


def test_a_missing_package_is_named(names, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for target, package in (("v6e-4", "libtpu"), ("h100-1", "jax-cuda13-pjrt")):
        row = names["check"]("reward", target, 1)
        assert row["ok"] is False
        assert f"pip install {package}" in row["error"]
        assert (row["program"], row["target"]) == ("reward", target)


def test_a_collective_is_counted_where_it_starts(names):
    text = """
      %all-reduce.1 = f32[4]{0:T(128)} all-reduce(%a), replica_groups={}
      %all-gather-start = (f32[1]{0}, f32[4]{0}) all-gather-start(%b), dimensions={0}
      %all-gather-done = f32[4]{0} all-gather-done(%all-gather-start)
      %fusion = f32[4]{0} fusion(%all-reduce.1), kind=kLoop
    """
    counts = names["count_collectives"](text)
    assert counts["all-reduce"] == counts["all-gather"] == 1
    assert sum(counts.values()) == 2


def test_the_reward_compiles_for_a_tpu(tmp_path):
    pytest.importorskip("libtpu")
    out = tmp_path / "rows.json"
    result = run("--programs=reward", "--targets=v5e-4", f"--out={out}")
    (row,) = json.loads(out.read_text())
    assert result.returncode == 0, row["error"]
    assert row["ok"] is True
    assert row["flops"] > 0
    assert row["collectives"]["all-reduce"] > 0
