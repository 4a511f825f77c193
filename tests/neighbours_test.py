"""Training without labels, by neighbours; hidden labels and neighbours as what measures."""

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from labelled_folder import NAMES, make, write_photos
from tiny_run import of_folder, read, tiny

from configs import default
from mch_jax import data, models, pairs, pipeline
from mch_jax.evaluation import results, rival_table
from mch_jax.training import features_file, neighbours, run, validation

GROUPS = {"similarity__source": "neighbours", "similarity__num_groups": 8}
OF_FOLDER = {**GROUPS, "similarity__num_groups": 3}


def cross_fit():
    config = tiny(**GROUPS)
    config.agent.update(recipe="cross_fit", num_folds=2, calibrate=True)
    return config


@pytest.fixture(scope="module")
def hidden(tmp_path_factory):
    """A run on photos with labels that are hidden from training."""
    workdir = tmp_path_factory.mktemp("hidden")
    pipeline.run_stages(cross_fit(), workdir)
    return workdir


def test_hidden_labels_only_measure(hidden, tmp_path, monkeypatch):
    """With other labels, everything is the same but the measures and the oracles."""
    dataset = run.read_dataset(cross_fit())
    shuffled = np.random.default_rng(0).permutation(dataset.labels)
    other = dataclasses.replace(dataset, labels=shuffled)
    monkeypatch.setattr(run, "read_dataset", lambda config: other)
    pipeline.run_stages(cross_fit(), tmp_path)
    (first, codes), (second, others) = read(hidden), read(tmp_path)
    for name in codes:
        if name.rpartition("/")[2] not in ("labels", "reward"):
            np.testing.assert_array_equal(codes[name], others[name], name)
    assert first["base"]["map"] != second["base"]["map"]
    assert first["dataset"]["classes"] == len(dataset.classes)


def test_results_and_report_say_what_similarity_is(hidden):
    found = results.read_results(hidden)
    assert found["similarity"] == {"training": "neighbours", "measures": "labels"}
    assert {"oracle", "oracle_ap", "oracle_neighbours"} < set(found["controls"])
    sentence = "Training saw no labels: two photos are similar if regions of them are neighbours."
    assert sentence in results.text_table(found)
    assert sentence in (hidden / "report" / "index.html").read_text()
    assert pipeline.verify(hidden) == 0


def test_a_run_with_labels_says_nothing_of_neighbours(finished):
    found = results.read_results(finished)
    assert "similarity" not in found
    assert "oracle_neighbours" not in found["controls"]
    assert not (finished / neighbours.FILE).exists()
    assert "training_reward" not in np.load(finished / "codes" / "regions.npz").files


def test_groups_are_those_of_regions_of_training_photos(hidden):
    this: Any = run.open_run(cross_fit(), hidden)
    pooled = np.asarray(models.mean_over_places(this.model, this.region_features))
    assert pooled.shape == (72, 6, 16)
    settings = {"num_groups": 8, "num_nearest": 1, "seed": 0}
    expected = neighbours.find(pooled, this.dataset, **settings)
    np.testing.assert_array_equal(this.target_labels, expected)
    # The photos outside the training set have no part in finding the groups.
    changed = pooled.copy()
    changed[this.dataset.query] = 1
    train = this.dataset.train
    found = neighbours.find(changed, this.dataset, **settings)
    np.testing.assert_array_equal(found[train], expected[train])
    assert this.model.num_classes == 8
    np.testing.assert_array_equal(this.labels, pairs.pack_labels(expected))


def test_a_damaged_file_of_groups_is_made_again(hidden, tmp_path, caplog):
    config = cross_fit()
    this: Any = run.open_run(config, tmp_path)
    before = (tmp_path / neighbours.FILE).read_bytes()
    (tmp_path / neighbours.FILE).write_bytes(before[:100])
    again: Any = run.open_run(config, tmp_path)
    np.testing.assert_array_equal(this.neighbours.groups, again.neighbours.groups)
    assert neighbours.read(tmp_path).made_from == this.neighbours.made_from
    (tmp_path / neighbours.FILE).unlink()
    with pytest.raises(ValueError, match="neighbours.npz does not exist; start the run again"):
        neighbours.read(tmp_path)


def test_photos_without_labels_end_to_end(tmp_path):
    write_photos(tmp_path / "photos", [*NAMES, "sub/a.jpg", "sub/b.jpg"])
    (tmp_path / "photos" / "notes.txt").write_text("not a photo")
    dataset = data.load("folder", tmp_path / "photos")
    assert sorted(dataset.ids.tolist()) == sorted([*NAMES, "sub/a.jpg", "sub/b.jpg"])
    assert dataset.classes == ()
    assert dataset.labels.shape == (12, 0)
    config = of_folder(tmp_path / "photos", **OF_FOLDER)
    found = pipeline.run_stages(config, tmp_path / "run")
    assert found is not None
    assert found["similarity"] == {"training": "neighbours", "measures": "neighbours"}
    assert found["dataset"]["classes"] == 3
    assert found["chance_map"] > 0
    assert "oracle_neighbours" not in found["controls"]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "because there are no labels" in page
    assert "group 0" in page
    for stage in ("evaluate", "report"):
        pipeline.run_stages(config, tmp_path / "run", stage)
    assert pipeline.verify(tmp_path / "run") == 0


def test_photos_without_labels_need_neighbours(tmp_path):
    write_photos(tmp_path / "photos")
    config = of_folder(tmp_path / "photos", **OF_FOLDER)
    config.similarity.source = "labels"
    with pytest.raises(ValueError, match="have no labels.*set --config.similarity.source=neigh"):
        pipeline.run_stages(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_that_are_added_later_measure(tmp_path):
    root = tmp_path / "photos"
    write_photos(root)
    config = of_folder(root, **OF_FOLDER)
    this: Any = run.open_run(config, tmp_path / "run")
    assert this.neighbours.measures
    assert this.dataset.classes[0] == "group 0"
    make(root)
    this = run.open_run(config, tmp_path / "run")
    assert not this.neighbours.measures
    assert this.dataset.classes == ("cat", "dog")
    assert not neighbours.read(tmp_path / "run").measures


@pytest.mark.parametrize("regions", ["all", "whole"])
def test_neighbours_by_a_features_file(tmp_path, regions):
    config = tiny(**GROUPS, similarity__regions=regions)
    dataset = run.read_dataset(config)
    features = np.random.default_rng(0).normal(size=(len(dataset.ids), 6, 4)).astype(np.float16)
    features_file.save(tmp_path / "features.npz", dataset.ids, features, 0.5)
    config.similarity.features = str(tmp_path / "features.npz")
    this: Any = run.open_run(config, tmp_path / "run")
    own = features[:, : 6 if regions == "all" else 1].astype(np.float32)
    expected = neighbours.find(own, dataset, num_groups=8, num_nearest=1, seed=0)
    np.testing.assert_array_equal(this.target_labels, expected)
    assert (expected.sum(1) == 1).all() == (regions == "whole")
    config.similarity.features = str(tmp_path / "missing.npz")
    with pytest.raises(ValueError, match="features file .*missing.npz does not exist"):
        run.open_run(config, tmp_path / "other")


def test_more_groups_than_regions_are_refused(tmp_path):
    config = tiny(similarity__source="neighbours", similarity__num_groups=241)
    expected = "num_groups is 241, expected at most 240, the number of regions of the 40 training"
    with pytest.raises(ValueError, match=expected):
        run.open_run(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "captions"}, "similarity.source is 'captions', expected one of labels, neigh"),
        ({"regions": "some"}, "similarity.regions is 'some', expected one of all, whole"),
        ({"num_groups": 0}, "similarity.num_groups is 0, expected a whole number from 1"),
        ({"num_groups": 4, "num_nearest": 5}, "num_nearest is 5, expected at most similarity.num"),
        ({"features": "a.npz"}, "similarity.features is 'a.npz', expected empty unless"),
    ],
)
def test_wrong_settings(changes, message):
    config: Any = default.get_config()
    config.similarity.update(changes)
    with pytest.raises(ValueError, match=message):
        validation.check(config)


def test_configs_of_earlier_versions_use_labels():
    assert neighbours.source({"method": "dch"}) == "labels"
    assert neighbours.source({"similarity": {"source": "neighbours"}}) == "neighbours"


def test_the_command_answers_with_one_line(tmp_path):
    write_photos(tmp_path / "photos")
    flags = [f"--config.dataset.root={tmp_path / 'photos'}", f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(
        [sys.executable, "-m", "mch_jax.main", "--config=folder_dch", *flags],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "the photos have no labels" in result.stderr


def test_rivals_need_the_labels_that_were_hidden(hidden):
    with pytest.raises(ValueError, match="was trained without its labels.*expected a run with"):
        rival_table.read_material(hidden)
