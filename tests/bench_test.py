"""The bench runner on small inputs: its table is there, and nothing is far slower than its peer."""

import json
import os
import subprocess
import sys

import pytest


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()},
    )  # fmt: skip


def test_quick_mode_writes_a_table_and_finds_nothing_slow(tmp_path):
    result = bench("--quick", "--threads=1", "--only=evaluator,reward", f"--out={tmp_path}")
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [row["key"] for row in rows] == ["reward", "evaluator", "evaluator", "evaluator"]
    assert all(row["rate"] > 0 for row in rows)
    assert "| agent's reward | 1 |" in (tmp_path / "bench.md").read_text()
    assert (tmp_path / "bench.png").stat().st_size > 1000
    assert not (tmp_path / "history.jsonl").exists()


@pytest.mark.parametrize("argument", ["--only=nothing", "--threads=many"])
def test_a_wrong_argument_is_one_line(argument):
    result = bench(argument)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
