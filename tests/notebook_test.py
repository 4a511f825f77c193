"""The notebooks' cells, run one after another with sizes of their first cell made small."""

import json
import pathlib
import warnings

import matplotlib
import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
NOTEBOOKS = sorted(path.name for path in LAUNCH.glob("*.ipynb"))


def cells(name):
    return json.loads((LAUNCH / name).read_text())["cells"]


def execute(name, monkeypatch, **sizes):
    """Runs a notebook as a script; returns its variables."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()) or plt.close("all"))
    first, *others = ["".join(c["source"]) for c in cells(name) if c["cell_type"] == "code"]
    variables = {}
    exec(first, variables)
    unknown = sizes.keys() - variables.keys()
    assert not unknown, f"the first cell has no {unknown}"
    variables.update(sizes)
    for number, source in enumerate(others, 1):
        with warnings.catch_warnings():
            exec(compile(source, f"{name}, code cell {number}", "exec"), variables)
    return variables, shown


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_outputs_and_sizes_in_the_first_code_cell(name):
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "REPOSITORY" in "".join(code[0]["source"])
    assert all("def " not in "".join(c["source"]) or "show" in "".join(c["source"]) for c in code)


def test_scenes(monkeypatch, tmp_path):
    small = tiny()
    fields = {
        name: small[name.split(".")[0]][name.split(".")[1]]
        for name in (
            "dataset.image_size", "model.input_size", "model.width", "model.hidden",
            "base.batch_size", "base.num_views", "agent.batch_size", "agent.widths",
            "encode.batch_size", "evaluate.bucket_k",
        )
    }  # fmt: skip
    variables, shown = execute(
        "scenes.ipynb", monkeypatch, NUM_TRAIN=40, NUM_DATABASE=24, NUM_QUERY=8, NUM_EPOCHS=1,
        NUM_STEPS=2, NUM_BITS=12, WORKDIR=str(tmp_path), FIELDS=fields | {"model.weights": ""},
    )  # fmt: skip
    assert len(shown) == 4
    assert 0 < variables["results"]["mch"]["map"] <= 1
    assert len(variables["found"]) == 6


def test_own_photos(monkeypatch, finished, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    variables, shown = execute(
        "own_photos.ipynb", monkeypatch, RUN=str(finished), PHOTOS=str(tmp_path), K=3
    )
    assert len(shown) == 1
    assert [x.name for x in variables["kept"]] == [f"{n}.png" for n in range(4)]
    assert variables["hits"].item[0, 0] in range(4)
    assert variables["hits"].distance[0, 0] == 0
    assert "broken.jpg' does not decode" in capsys.readouterr().out
