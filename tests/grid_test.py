import json
import sys

import pytest

from mch_jax import grid
from mch_jax.grid import Cell

# Simulates a run: writes the files of a finished run, or fails.
SIMULATED_RUN = """
import json, pathlib, sys
method, workdir = sys.argv[1], pathlib.Path(sys.argv[2])
if method == "itq":
    sys.exit("error: no such thing")
(workdir / "report").mkdir(parents=True)
measures = {"map": 0.5, "anhc": 1.5}
(workdir / "results.json").write_text(json.dumps({"base": measures, "mch": measures}))
(workdir / "report" / "index.html").write_text("")
"""


def test_cells_are_ordered_by_seed_first():
    found = grid.cells("coco18", ["dch", "ksh"], [16, 32], [0, 1])
    assert found[:3] == [
        Cell("coco18", "dch", 16, 0),
        Cell("coco18", "ksh", 16, 0),
        Cell("coco18", "dch", 32, 0),
    ]
    assert len(set(found)) == 8
    assert found[-1].name == "coco18_ksh_32_1"


@pytest.mark.parametrize(
    ("dataset", "method", "expected"),
    [
        ("coco19", "dch", "a data set of coco, coco18, "),
        ("coco18", "dhc", "a method of adsh, csq, dch, "),
    ],
)
def test_a_cell_without_a_config_is_refused(dataset, method, expected):
    message = f"{dataset}_{method}.py does not exist; expected {expected}"
    with pytest.raises(ValueError, match=message):
        grid.cells(dataset, [method], [16], [0])


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [cell.name for cell in grid.cells("coco18", ["dch"], [16], [0])] == ["coco18_dch_16_0"]


def test_a_cell_is_a_run_of_main(tmp_path):
    command = grid.run_command(Cell("coco18", "dch", 16, 3), tmp_path, ["base.num_epochs=2"])
    assert command[1:] == [
        "-m",
        "mch_jax.main",
        "--config=coco18_dch",
        f"--workdir={tmp_path}/coco18_dch_16_3",
        f"--config.cache_dir={tmp_path}/features",
        "--config.num_bits=16",
        "--config.seed=3",
        "--config.base.num_epochs=2",
    ]


def test_a_failed_cell_is_reported_and_only_it_runs_again(tmp_path, monkeypatch):
    started = []

    def run_command(cell, root, changes):
        started.append(cell.name)
        return [sys.executable, "-c", SIMULATED_RUN, cell.method, str(root / cell.name)]

    monkeypatch.setattr(grid, "run_command", run_command)
    cells = grid.cells("scenes", ["lsh", "itq", "dch"], [16], [0])
    failed = grid.run_grid(cells, tmp_path, [], 2, [])
    assert failed == ["scenes_itq_16_0: exit status 1: error: no such thing"]
    assert sorted(started) == ["scenes_dch_16_0", "scenes_itq_16_0", "scenes_lsh_16_0"]
    started.clear()
    grid.run_grid(cells, tmp_path, [], 2, [])
    assert started == ["scenes_itq_16_0"]


def test_a_grid_with_other_settings_is_refused(tmp_path):
    grid.claim(tmp_path, {"dataset": "coco18", "set": []})
    grid.claim(tmp_path, {"dataset": "coco18", "set": []})
    with pytest.raises(ValueError, match="another --root"):
        grid.claim(tmp_path, {"dataset": "coco18", "set": ["seed=1"]})
    assert json.loads((tmp_path / "grid.json").read_text())["set"] == []


def test_jobs_divide_the_cores_and_take_the_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(grid.machine, "cores", lambda: [0, 1, 2, 3])
    first, second, third = grid.resources(3, ["0", "1"])
    assert (first[0], second[0], third[0]) == ([0, 3], [1], [2])
    assert [share[1]["CUDA_VISIBLE_DEVICES"] for share in (first, second, third)] == ["0", "1", "0"]
    assert grid.resources(1, []) == [([0, 1, 2, 3], {})]
