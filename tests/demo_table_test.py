"""README's table of the demo follows from recorded runs, and other results lie within it."""

import importlib.util
import json
import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("demo_table", ROOT / "launch" / "demo_table.py")
assert spec is not None
assert spec.loader is not None
demo_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo_table)
RECORDED = json.loads(demo_table.FILE.read_text())


def outside(found):
    """Yields the measures that lie outside README's interval."""
    for row in demo_table.ROWS:
        for name in ("map", "p_at_h0", "r_at_h0"):
            mean, half = demo_table.interval(RECORDED["runs"], row, name)
            if not abs(found[row][name] - mean) <= half:
                yield f"{row} {name}: {found[row][name]:.4f}, expected {mean:.4f} ± {half:.4f}"


def test_the_table_of_the_readme_is_that_of_the_recorded_runs():
    assert demo_table.table(RECORDED["runs"]) in (ROOT / "README.md").read_text()
    assert sorted(run["seed"] for run in RECORDED["runs"]) == [0, 1, 2, 3, 4]


def test_results_of_other_machines_lie_within_the_interval():
    assert len(RECORDED["elsewhere"]) >= 1
    for found in RECORDED["elsewhere"]:
        assert list(outside(found)) == []
    wrong = json.loads(json.dumps(RECORDED["runs"][0]))
    wrong["mch"]["map"] = wrong["base"]["map"]  # as if the agent changed nothing
    assert any(line.startswith("mch map: ") for line in outside(wrong))


@pytest.mark.skipif("DEMO_RUN" not in os.environ, reason="DEMO_RUN names no finished demo")
def test_this_machines_demo_lies_within_the_interval():
    results = json.loads((pathlib.Path(os.environ["DEMO_RUN"]) / "results.json").read_text())
    assert list(outside(demo_table.measures(results))) == []
