"""Every config loads and is valid, its header is complete, and one per data set runs."""

import ast
import inspect
import io
import pathlib
import re
import runpy
import tarfile
from typing import Any

import jax.numpy as jnp
import published
import pytest
from tiny_run import shrunk

from configs import default
from mch_jax import data, methods, pipeline
from mch_jax.training import validation

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
DATASETS = ("scenes", "coco18", "coco", "nuswide", "mirflickr", "folder")
METHODS = tuple(methods.METHODS)
FILES = sorted(FOLDER.glob("*_*.py"))
# Methods that were measured on coco18.
MEASURED = (
    "lsh", "itq", "ksh", "hashnet", "adsh", "dch", "mmhh",
    "orthohash", "hyp2", "csq", "dpn", "talr", "dphn",
)  # fmt: skip


def load(path):
    """Returns the config of a file, loaded as --config loads it."""
    return runpy.run_path(str(path))["get_config"]()


def test_there_is_one_for_each_data_set_and_method():
    assert set(data.READERS) == set(DATASETS)
    assert {f.stem for f in FILES} >= {f"{d}_{m}" for d in DATASETS for m in METHODS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_config_is_what_its_name_says(path):
    config, again = load(path), load(path)
    name, _, method = path.stem.partition("_")
    assert (config.dataset.name, config.method) == (name, method)
    validation.check(config)
    assert config.to_json_best_effort() == again.to_json_best_effort()
    fields: Any = default.get_config()
    extra = set(config.keys()) ^ set(fields.keys())
    assert not extra
    for section in ("model", "base", "agent", "encode", "evaluate"):
        differ = {*config[section].keys()} ^ {*fields[section].keys()}
        assert all(section == "base" and field.startswith(f"{method}_") for field in differ)
    is_for_gpu = name in data.PUBLISHED
    assert config.base.train_conv == is_for_gpu
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"--config=configs/{path.stem}.py" in header
    assert ("--config.dataset.root=DIR" in header) == (name != "scenes")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_header_says_what_was_measured(path):
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    if header.endswith("\nNot run."):
        assert path.stem not in {f"coco18_{method}" for method in MEASURED}
        return
    for part in ("Measured ", "Hardware: ", "Time: ", "Score: "):
        assert f"\n{part}" in header
    source = (FOLDER.parent / ("README.md" if "README" in header else "RESULTS.md")).read_text()
    numbers = re.findall(r"\.\d+(?: ± \.\d+)?", header[header.index("Score: ") :])
    assert len(numbers) >= 2
    assert all(number in source for number in numbers)


def test_a_config_of_photos_does_not_inherit_from_the_demo():
    for path in FILES:
        if not path.stem.startswith("scenes_"):
            assert "scenes" not in path.read_text()


def test_a_config_has_all_settings_of_its_method():
    """A method may add a setting in its own config; default.py has those that exist already."""
    takes = {
        name: {*inspect.signature(objective).parameters} - {"num_bits"}
        for name, objective in methods.OBJECTIVES.items()
    }
    assert {*default.SETTINGS} <= set().union(*takes.values())
    for path in FILES:
        config = load(path)
        assert takes.get(config.method, set()) <= {*config.objective.keys()}, path


def test_a_setting_left_out_is_the_methods_own():
    config = load(FOLDER / "scenes_dch.py")
    given = methods.objective("dch", 16, **{**config.objective, "gamma": 10.0})
    own = methods.objective("dch", 16, **config.objective)
    pair = jnp.array([3.0]), jnp.array([True])
    for made, gamma in ((given, 10.0), (own, 20.0)):
        plain = methods.objective("dch", 16, gamma=gamma)
        assert made.pair_loss(*pair) == plain.pair_loss(*pair)


def test_methods_change_nothing_but_their_own():
    base = load(FOLDER / "scenes_dch.py")
    for method in ("hashnet", "adsh", "mmhh"):
        config = load(FOLDER / f"scenes_{method}.py")
        config.method = "dch"
        config.objective = base.objective
        assert config.to_dict() == base.to_dict()
    turns = load(FOLDER / "coco_adsh.py").base
    per_turn = turns.adsh_epochs * (turns.adsh_sample // turns.batch_size)
    assert turns.num_epochs * (10000 // turns.batch_size) // per_turn == 50


def write_coco18(root):
    with tarfile.open(root / "images.tar", "w") as tar:
        for i in range(40):
            content = published.photo(i)
            member = tarfile.TarInfo(f"{i}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    write_labels(root)


def write_folder(root):
    for i in range(40):
        (root / f"{i}.jpg").write_bytes(published.photo(i))
    write_labels(root)


def write_labels(root):
    split = ["query"] * 4 + ["train"] * 20 + ["database"] * 16
    lines = [f"{i}.jpg,{split[i]},{i & 1},{i >> 1 & 1},{i >> 2 & 1}" for i in range(40)]
    (root / "labels.csv").write_text("\n".join(["file,split,cat,dog,bus", *lines]))


WRITERS = {**published.WRITERS, "coco18": write_coco18, "folder": write_folder}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("coco", "dch"),
        ("folder", "itq"),
        ("folder", "lsh"),
    ],
)
def test_a_step_from_its_config(name, method, tmp_path):
    config = shrunk(load(FOLDER / f"{name}_{method}.py"))
    config.model.weights = ""
    config.base.num_epochs = 1
    config.agent.num_steps = 2
    root = tmp_path / "root"
    root.mkdir()
    if name == "scenes":
        config.dataset.settings = {"size": 64, "num_train": 40, "num_database": 24, "num_query": 8}
    else:
        WRITERS[name](root)
        config.dataset.root = str(root)
        config.dataset.settings.update(published.SETTINGS.get(name, {}))
    results: Any = pipeline.run_stages(config, tmp_path / "run")
    assert 0 < results["base"]["map"] <= 1
    assert results["dataset"]["queries"] == {"coco": 5, "nuswide": 4, "mirflickr": 5}.get(
        name, 8 if name == "scenes" else 4
    )
    assert ("mch" in results) == (method in methods.OBJECTIVES) or (results["mch"]["anhc"] >= 1)
