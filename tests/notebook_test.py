"""The notebooks' cells, run one after another with the sizes of their first cell made small."""

import json
import pathlib

import matplotlib
import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
NOTEBOOKS = sorted(path.name for path in LAUNCH.glob("*.ipynb"))


def code_cells(name):
    cells = json.loads((LAUNCH / name).read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def execute(name, monkeypatch, **sizes):
    """Runs a notebook as a script; returns its variables and the number of figures it showed."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()) or plt.close("all"))
    monkeypatch.chdir(LAUNCH)  # where Jupyter starts
    monkeypatch.syspath_prepend(LAUNCH.parent)  # what the notebook puts there goes again
    first, *others = ["".join(cell["source"]) for cell in code_cells(name)]
    variables = {}
    exec(first, variables)
    unknown = sizes.keys() - variables.keys()
    assert not unknown, f"the first cell has no {unknown}"
    variables.update(sizes)
    for number, source in enumerate(others, 1):
        exec(compile(source, f"{name}, code cell {number}", "exec"), variables)
    return variables, len(shown)


def test_there_are_three():
    assert NOTEBOOKS == ["bring_your_network.ipynb", "own_photos.ipynb", "scenes.ipynb"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_whole_outputs_and_sizes_in_the_first_code_cell(name):
    cells = code_cells(name)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert "stderr" not in {output.get("name") for output in outputs}
    text = json.dumps(outputs)
    assert not any(place in text for place in ("/home/", "/root/", "/tmp/", "/work/", "://"))
    assert (LAUNCH / name).stat().st_size < 400_000
    first, *others = ["".join(cell["source"]) for cell in cells]
    assert "SOURCE" in first
    assert not any("def " in source for source in others)
    metadata = json.loads((LAUNCH / name).read_text())["metadata"]
    assert metadata["accelerator"] == "GPU"


def small_fields(*names):
    """Returns fields of the tiny config by their names: these, and the sizes that all runs have."""
    small = tiny()
    sizes = (
        "dataset.image_size", "base.batch_size", "base.num_views", "agent.batch_size",
        "agent.widths", "encode.batch_size", "evaluate.bucket_k",
    )  # fmt: skip
    return {name: small[name.split(".")[0]][name.split(".")[1]] for name in (*sizes, *names)}


@pytest.mark.slow
def test_bring_your_network(monkeypatch, tmp_path):
    fields = small_fields("model.hidden")
    network = "import numpy as np\n\n\ndef features(photos):\n"
    network += "    return photos[:, ::16, ::16].reshape(len(photos), -1).astype(np.float32)\n"
    variables, shown = execute(
        "bring_your_network.ipynb", monkeypatch, NUM_TRAIN=40, NUM_DATABASE=24, NUM_QUERY=8,
        NUM_EPOCHS=3, NUM_STEPS=6, WORKDIR=str(tmp_path), FIELDS=fields, NETWORK=network,
    )  # fmt: skip
    assert shown == 3
    assert len(variables["found"]) == 6
    assert variables["mch"].encoder.backbone.record.source == "my_network:features"


def test_scenes(monkeypatch, tmp_path):
    fields = small_fields("model.input_size", "model.width", "model.hidden")
    variables, shown = execute(
        "scenes.ipynb", monkeypatch, NUM_TRAIN=40, NUM_DATABASE=24, NUM_QUERY=8, NUM_EPOCHS=3,
        NUM_STEPS=6, NUM_BITS=12, WORKDIR=str(tmp_path), FIELDS=fields | {"model.weights": ""},
    )  # fmt: skip
    assert shown == 5
    assert 0 < variables["results"]["mch"]["map"] <= 1
    assert variables["keep_prob"].shape == (3, 6)
    assert len(variables["found"]) == 6


def test_own_photos(monkeypatch, finished, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    variables, shown = execute(
        "own_photos.ipynb", monkeypatch, RUN=str(finished), PHOTOS=str(tmp_path),
        OUT=str(tmp_path / "codes.npz"), K=3,
    )  # fmt: skip
    assert shown == 1
    assert "4 photos encoded, 1 damaged" in capsys.readouterr().out
    found = variables["found"]
    assert len(found) == 3
    assert found[0].distance == 0
    assert len(variables["mch"].database.ids) == 4
