"""Runs on an ONNX file: layouts, normalisation, a whole run, and every refusal."""

import functools
import json
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny

import mch_jax
from mch_jax import backbones, codes, pipeline, search
from mch_jax.encoder import Encoder
from mch_jax.files import codes_file
from mch_jax.training import run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper  # noqa: E402  # pyright: ignore[reportMissingImports]

MEAN, STD = (0.485, 0.456, 0.406), (0.25, 0.5, 1.0)
load = functools.partial(backbones.load, input_size=64, mean=MEAN, std=STD)


def write(path, layout="NCHW", batch="n", side=64, dtype=TensorProto.FLOAT, ends="cells"):
    """Writes a network that returns the mean colours of 4 x 4 cells of a photo.

    Args:
      path: Path of the file.
      layout: Layout of the input.
      batch: Number of photos, or a name for any number.
      side: Side of the photos, or a name for any side.
      dtype: Type of the input's numbers.
      ends: `cells` to return 48 features, `map` for a map of them, `tokens` for three axes.
    """
    shape = [batch, 3, side, side] if layout == "NCHW" else [batch, side, side, 3]
    nodes, last = [], "photos"
    if dtype != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [last], ["floats"], to=TensorProto.FLOAT))
        last = "floats"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [last], ["first"], perm=[0, 3, 1, 2]))
        last = "first"
    pool: Any = {"kernel_shape": [16, 16], "strides": [16, 16]}
    nodes.append(helper.make_node("AveragePool", [last], ["cells"], **pool))
    axes = {"cells": 2, "map": 4, "tokens": 3}[ends]
    if ends == "cells":
        nodes.append(helper.make_node("Flatten", ["cells"], ["features"]))
    elif ends == "tokens":
        new_shape = helper.make_tensor("shape", TensorProto.INT64, [3], [0, 3, -1])
        nodes.append(helper.make_node("Constant", [], ["to"], value=new_shape))
        nodes.append(helper.make_node("Reshape", ["cells", "to"], ["features"]))
    else:
        nodes.append(helper.make_node("Identity", ["cells"], ["features"]))
    graph = helper.make_graph(
        nodes,
        "cells",
        [helper.make_tensor_value_info("photos", dtype, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [None] * axes)],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return str(path)


def photos(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)


def expected(images, normalised=True):
    """Returns the features as the network should compute them: channels, then cells."""
    cells = images.reshape(len(images), 4, 16, 4, 16, 3).mean((2, 4))
    if normalised:
        cells = (cells / 255 - np.array(MEAN)) / np.array(STD)
    return cells.transpose(0, 3, 1, 2).reshape(len(images), -1)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", ["n", 1, 2])
@pytest.mark.parametrize("side", [64, "side"])
def test_layouts_are_read_from_the_file(layout, batch, side, tmp_path):
    network = load(write(tmp_path / "net.onnx", layout, batch, side))
    assert network.record.width == 48
    np.testing.assert_allclose(network(photos()), expected(photos()), atol=1e-5)
    np.testing.assert_allclose(network(photos(1)), expected(photos(1)), atol=1e-5)


def test_integers_are_not_normalised(tmp_path):
    network = load(write(tmp_path / "net.onnx", dtype=TensorProto.UINT8))
    np.testing.assert_allclose(network(photos()), expected(photos(), False), rtol=1e-5)


def test_half_precision(tmp_path):
    network = load(write(tmp_path / "net.onnx", dtype=TensorProto.FLOAT16))
    np.testing.assert_allclose(network(photos()), expected(photos()), atol=1e-2)


def test_a_map_of_features_is_averaged(tmp_path):
    network = load(write(tmp_path / "net.onnx", ends="map"))
    cells = expected(photos()).reshape(3, 3, 16)
    np.testing.assert_allclose(network(photos()), cells.mean(2), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"side": 32}, r"takes photos of 32 x 32 pixels, model\.input_size is 64"),
        ({"dtype": TensorProto.INT64}, r"takes tensor\(int64\) \[\?, 3, 64, 64\], expected one"),
        (
            {"ends": "tokens"},
            r"returned float32 \[2, 3, 16\] for 2 photos, expected",
        ),
    ],
)
def test_networks_that_do_not_fit(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        load(write(tmp_path / "net.onnx", **settings))
    assert "\n" not in str(error.value)


def test_files_that_are_no_networks(tmp_path):
    with pytest.raises(ValueError, match=r"none\.onnx': No such file or directory; expected"):
        load(str(tmp_path / "none.onnx"))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match="is not a network that onnxruntime can run"):
        load(str(tmp_path / "text.onnx"))
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match=r"folder\.onnx': it is not a regular file"):
        load(str(tmp_path / "folder.onnx"))


@pytest.mark.parametrize("inside", [False, True])
def test_weights_in_other_files_are_refused(tmp_path, monkeypatch, inside):
    """They could be any files of the machine."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [3, 3, 1, 1], bytes(36), raw=True)
    nodes = [
        helper.make_node("Conv", ["photos", "w"], ["mixed"]),
        helper.make_node("GlobalAveragePool", ["mixed"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mix",
        [helper.make_tensor_value_info("photos", TensorProto.FLOAT, ["n", 3, 64, 64])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 3, 1, 1])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = str(tmp_path / "net.onnx")
    onnx.save(model, path)
    assert load(path).record.width == 3
    onnx.save(
        model, path, save_as_external_data=True, location="weights.bin", size_threshold=0,
        convert_attribute=False,
    )  # fmt: skip
    assert (tmp_path / "weights.bin").exists()
    if inside:  # the folder that onnxruntime would look in
        monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="expected an ONNX file that holds all its weights"):
        load(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on an ONNX file, beside the file."""
    folder = tmp_path_factory.mktemp("onnx")
    source = write(folder / "net.onnx")
    config = tiny("itq", model__backbone=source, model__input_size=64, model__hidden=0)
    config.model.std = STD
    results = pipeline.run_stages(config, folder / "run")
    assert results["base"]["map"] > 0.9 * results["chance_map"]
    return folder


def test_a_run_opens_its_file_again(trained, tmp_path, capsys):
    workdir = trained / "run"
    record = backbones.read_record(workdir / backbones.FILE)
    assert (record.kind, record.mean, record.std) == ("onnx", MEAN, STD)
    assert len(record.sha256) == 64
    dataset = run.reopen(workdir).dataset
    own = codes_file.load(workdir / "codes" / "database.npz")
    path = tmp_path / "photo.png"
    Image.fromarray(dataset.read(int(dataset.database[9]))).save(path)
    np.testing.assert_array_equal(
        mch_jax.load(workdir).encode(path), own.codes[[np.searchsorted(own.item, 9)]]
    )
    search.main([f"--run={workdir}", f"--image={path}", "--k=64", "--json"])
    (record,) = json.loads(capsys.readouterr().out)
    assert {hit["item"]: hit["distance"] for hit in record["hits"]}[9] == 0


def test_a_file_that_moved_or_changed(trained, tmp_path):
    workdir = shutil.copytree(trained / "run", tmp_path / "run")
    net, moved = trained / "net.onnx", tmp_path / "moved.onnx"
    shutil.copy(net, moved)
    Encoder.from_run(workdir, str(moved))
    with pytest.raises(ValueError, match="'colour_backbone:grid': No such file"):
        Encoder.from_run(workdir, "colour_backbone:grid")
    write(moved, layout="NHWC")
    with pytest.raises(ValueError, match=r"moved\.onnx' has SHA-256 .*; give the run's file"):
        Encoder.from_run(workdir, str(moved))


@pytest.mark.parametrize("select", ["set", pytest.param("each", marks=pytest.mark.slow)])
def test_an_agent_that_tells_labels_from_a_network_chooses_codes_of_photos(
    select, tmp_path, capsys
):
    source, workdir = write(tmp_path / "net.onnx"), tmp_path / "run"
    config = tiny("dch", agent__recipe="cross_fit", agent__num_folds=2, agent__num_steps=2)
    config.agent.update(evidence_backbone=source, evidence_size=64, select=select)
    results = pipeline.run_stages(config, workdir)
    assert results["mch"]["anhc"] >= 1
    this, encoder = run.open_run(config, workdir), Encoder.from_run(workdir)
    assert encoder.evidence_backbone.record.width == this.evidence_features.views.shape[-1] == 48
    with np.load(workdir / "codes" / "query_regions.npz", allow_pickle=False) as saved:
        images = np.stack([this.dataset.read(int(row)) for row in this.dataset.query])
        outputs = encoder.region_outputs(images)
        np.testing.assert_array_equal(codes.to_bytes(outputs.packed, 12), saved["codes"])
        np.testing.assert_allclose(outputs.keep_prob, saved["keep_prob"], atol=1e-3)
        np.testing.assert_allclose(outputs.label_logits, saved["label_logits"], atol=1e-2)
    photo = tmp_path / "photo.png"
    Image.fromarray(images[0]).save(photo)
    search.main([f"--run={workdir}", f"--image={photo}", "--query_codes=agent", "--json"])
    assert json.loads(capsys.readouterr().out)
    with pytest.raises(ValueError, match=r"config.agent.evidence_backbone\), which JAX does not"):
        encoder.image_function()
    moved = tmp_path / "moved.onnx"
    shutil.move(source, moved)
    with pytest.raises(ValueError, match=r"net.onnx, the network .*, is missing; copy it to"):
        Encoder.from_run(workdir)
    shutil.copy(moved, workdir / "net.onnx")
    again = Encoder.from_run(workdir).region_outputs(images)
    np.testing.assert_array_equal(again.keep_prob, outputs.keep_prob)
    write(workdir / "net.onnx", layout="NHWC")
    with pytest.raises(ValueError, match=r"has SHA-256 .*, the run's file has"):
        Encoder.from_run(workdir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent__evidence_backbone": "net.onnx"}, "expected empty where agent.recipe is paper"),
        ({"agent__evidence_backbone": "colour_backbone:grid"}, "the path of an ONNX file"),
        (
            {
                "agent__recipe": "cross_fit",
                "agent__evidence_backbone": "net.onnx",
                "agent__evidence_features": "features.npz",
            },
            "expected empty where agent.evidence_features is given",
        ),
        ({"agent__evidence_mean": (0.5,)}, "three, one per channel"),
    ],
)
def test_configs_that_do_not_fit_a_network_of_the_agent(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pipeline.run_stages(tiny("dch", **changes), tmp_path)
