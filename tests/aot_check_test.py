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
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
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
    counts = names["count"](text, names["COLLECTIVES"])
    assert counts["all-reduce"] == counts["all-gather"] == 1
    assert sum(counts.values()) == 2


def test_a_collective_is_listed_with_its_bytes_and_its_source(names):
    text = """
      %all-reduce.1 = f32[8,2]{1,0} all-reduce(%a), to_apply=%add, metadata={op_name="jit(f)/psum"}
      %g = ((f32[4,3]{1,0}, u32[4]{0}), (f32[8,3]{1,0}, u32[8]{0})) all-gather-start(%b, %c)
      %all-gather-done = (f32[8,3]{1,0}, u32[8]{0}) all-gather-done(%g)
      %t = (f32[2]{0:T(128)}, bf16[3,1]{1,0}) all-reduce(%d, %e), replica_groups={}
    """
    assert names["moved_arrays"](text) == [
        {"name": "all-reduce", "arrays": ["f32[8,2]"], "bytes": 64, "source": "jit(f)/psum"},
        {"name": "all-gather", "arrays": ["f32[8,3]", "u32[8]"], "bytes": 128, "source": None},
        {"name": "all-reduce", "arrays": ["f32[2]", "bf16[3,1]"], "bytes": 14, "source": None},
    ]


def test_rows_of_other_programs_are_kept(names, tmp_path):
    out = tmp_path / "rows.json"
    kept = {"program": "evaluator", "target": "v6e-4", "ok": True}
    out.write_text(json.dumps([kept, {"program": "reward", "target": "v6e-4"}]))
    rows = names["earlier_rows"](str(out))
    new = {"program": "reward", "target": "v6e-4", "ok": False}
    assert names["in_order"](rows | {("v6e-4", "reward"): new}) == [new, kept]
    out.write_text("[1]")
    with pytest.raises(SystemExit):
        names["earlier_rows"](str(out))


def test_a_training_step_holds_its_state_twice_at_most(names):
    found = names["training_bytes"]("base_step_cached", 4)
    parameters = 4 * (9216 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 64 + 64)
    assert found["state_bytes"] == pytest.approx(3 * parameters, rel=1e-6)
    assert found["activation_bytes"] > 4 * 64 * (9216 + 2 * 4096)
    assert set(names["training_bytes"]("reward", 4).values()) == {None}


TEXT = """
HloModule jit_step, is_scheduled=true

%fused (p.0: bf16[8,16], p.1: bf16[16,4]) -> f32[8,4] {
  %p.0 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[16,4]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %dot.3 = f32[8,4]{1,0:T(8,128)} dot(%p.0, %p.1), lhs_contracting_dims={1}
}

ENTRY %main (a: f32[8,16], b: f32[16,4]) -> f32[8,4] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16,4]{1,0} parameter(1)
  %copy.1 = f32[8,16]{0,1} copy(%a)
  %copy-start = (f32[16,4]{1,0:S(1)}, f32[16,4]{1,0}, u32[]) copy-start(%b)
  %copy-done = f32[16,4]{1,0:S(1)} copy-done(%copy-start)
  %convolution.2 = f32[8,4]{1,0} convolution(%copy.1, %copy-done), dim_labels=bf_io->bf
  %gemm = (f32[8,4]{1,0}, s8[64]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm"
  %sort = (f32[8]{0}, s8[4]{0}) custom-call(%a), custom_call_target="__cub$DeviceRadixSort"
  %old.1 = f16[8,4]{1,0} dot(f16[8,16]{1,0} %x, f16[16,4]{1,0} %y), lhs_contracting_dims={1}
  %scatter.5 = f32[8,4]{1,0} scatter(%gemm, %i, %u), to_apply=%add, metadata={op_name="a/dot(x)"}
  %select-and-scatter.1 = f32[8,4]{1,0} select-and-scatter(%a, %b, %c), select=%ge
  ROOT %reduce-scatter.1 = f32[8,4]{1,0} reduce-scatter(%convolution.2), to_apply=%add
}
"""


def test_instructions_are_read_from_the_text(names):
    fields = names["text_fields"](TEXT)
    assert fields["copies"] == 2
    assert fields["scatters"] == 1
    assert fields["collectives"]["reduce-scatter"] == 1
    assert fields["products"] == {"bf16,bf16->f32": 1, "f32,f32->f32": 2, "f16,f16->f16": 1}
    assert names["text_fields"]("")["products"] == {}


def test_a_roofline_is_that_of_the_published_peaks(names):
    assert names["PEAKS"].keys() == {target.partition("-")[0] for target in names["TARGETS"]}
    found = names["roofline"]("v5e-4", 197e12, 1638e9)
    assert found == {"compute_seconds": 1.0, "memory_seconds": 2.0}
    assert set(names["roofline"]("h100-1", None, None).values()) == {None}


def test_a_row_keeps_its_fields_where_the_text_cannot_be_read(names):
    class Compiled:
        def as_text(self):
            raise ValueError("unknown enum")

    fields, error = names["read_text"](Compiled())
    assert set(fields.values()) == {None}
    assert "unknown enum" in error
    row = names["empty_row"]("reward", "h100-1", "no")
    assert row.keys() >= fields.keys()
    assert row["collectives"] == {}


def test_the_reward_compiles_for_a_tpu(tmp_path):
    pytest.importorskip("libtpu")
    out = tmp_path / "rows.json"
    result = run("--programs=reward", "--targets=v5e-4", f"--out={out}")
    (row,) = json.loads(out.read_text())
    assert result.returncode == 0, row["error"]
    assert row["ok"] is True
    assert row["flops"] > 0
    assert row["peak_bytes"] > 0
    assert row["compute_seconds"] > 0
    assert row["products"] is not None
    assert row["collectives"]["all-reduce"] > 0
