"""Whole runs on a few tiny scenes: every stage, interrupted and resumed, on several devices."""

import dataclasses
import functools
import json
from typing import Any

import jax
import numpy as np
import pytest
from tiny_run import assert_same, read, tiny

from launch import levers
from mch_jax import codes as code_lib
from mch_jax import metrics, pipeline
from mch_jax.agent import evidence
from mch_jax.encoder import Encoder
from mch_jax.evaluation import controls, evaluate, measures
from mch_jax.files import Checkpoints, codes_file
from mch_jax.training import base as base_stage
from mch_jax.training import cross_fit, paper, parallel, run


def cross_fit_config(method="dch", **changes):
    """Returns a tiny config with the cross-fitted recipe of the agent."""
    config = tiny(method, **changes)
    config.base.label_weight = 0.2
    config.agent.update(recipe="cross_fit", num_folds=2, optimizer="adam", dropout=0.5)
    return config


def test_a_run_writes_the_documented_files(finished):
    results, arrays = read(finished)
    assert results["dataset"] == {
        "name": "scenes", "queries": 8, "database": 64, "train": 40, "classes": 14,
        "queries_without_relevant": results["dataset"]["queries_without_relevant"],
    }  # fmt: skip
    assert set(results["controls"]) == {"always", "never", "random", *measures.ORACLES}
    assert results["controls"]["never"] == results["base"]
    for name, gain in results["mch_minus_base"].items():
        assert gain["mean"] == pytest.approx(results["mch"][name] - results["base"][name])
        assert gain["interval"] >= 0
    for name, share in results["oracle_share"].items():
        base, mch = (results[kind]["map"] for kind in ("base", "mch"))
        gain = results["controls"][name]["map"] - base
        assert share == (pytest.approx((mch - base) / gain) if gain > 0 else None)
    never = np.arange(6)[None] == np.zeros((64, 1))  # only the whole image's code
    database = codes_file.load(finished / "codes" / "database.npz")
    regions = {key.split("/")[1]: arrays[key] for key in arrays if key.startswith("regions.npz")}
    for kept, base in zip(
        controls.with_kept(database, regions, never), controls.base_codes(database), strict=True
    ):
        np.testing.assert_array_equal(kept, base)
    assert results["base"]["anhc"] == 1.0
    assert results["controls"]["always"]["anhc"] >= results["mch"]["anhc"] >= 1.0
    assert results["controls"]["always"]["r_at_h0"] >= results["base"]["r_at_h0"]
    assert arrays["database.npz/codes"].dtype == np.uint8
    assert arrays["database.npz/codes"].shape[1] == 2  # 12 bits
    assert (arrays["database.npz/codes"][:, 1] < 16).all()  # padding bits
    assert str(arrays["database.npz/format"]) == "mch-codes/1"
    assert len(arrays["query.npz/codes"]) == 8
    with np.load(finished / "codes" / "query_regions.npz", allow_pickle=False) as of_queries:
        assert of_queries["codes"].shape == (8, 6, 2)
        np.testing.assert_array_equal(of_queries["codes"][:, 0], arrays["query.npz/codes"])
        bits = np.packbits(of_queries["logits"] >= 0, axis=2, bitorder="little")
        np.testing.assert_array_equal(bits, of_queries["codes"])
    assert (finished / "report" / "index.html").exists()
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    stages = {json.loads(line)["stage"] for line in lines}
    assert stages == {"base", "agent"}


def test_results_agree_with_the_public_histogram(finished):
    query = codes_file.load(finished / "codes" / "query.npz")
    database = codes_file.load(finished / "codes" / "database.npz")
    relevant = query.labels @ database.labels.T > 0
    counts = metrics.histogram(query.codes, database.codes, database.item, relevant, 12)
    np.testing.assert_array_equal(counts, evaluate.histogram(query, database))
    expected = metrics.mean_average_precision(counts)
    assert read(finished)[0]["mch"]["map"] == pytest.approx(expected)


def test_a_second_run_is_the_same_bit_for_bit(finished, tmp_path):
    pipeline.run_stages(tiny(), tmp_path)
    assert_same(read(finished), read(tmp_path))


class Killed(Exception):
    """Simulates the end of the process."""


def interrupt_and_resume(config, workdir, monkeypatch, after):
    """Runs all stages until the given number of checkpoints, then resumes; returns the results."""
    save, calls = Checkpoints.save, []

    def save_and_stop(self, step, state):
        save(self, step, state)
        calls.append(step)
        if len(calls) == after:
            raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    with pytest.raises(Killed):
        pipeline.run_stages(config, workdir)
    monkeypatch.undo()
    pipeline.run_stages(config, workdir)
    return read(workdir)


@pytest.mark.parametrize("after", [4])
def test_a_run_interrupted_after_a_checkpoint_resumes(finished, tmp_path, monkeypatch, after):
    assert_same(read(finished), interrupt_and_resume(tiny(), tmp_path, monkeypatch, after))


def test_single_stages_give_the_same_as_all_together(finished, tmp_path):
    for stage in pipeline.STAGES:
        pipeline.run_stages(tiny(), tmp_path, stage)
    assert_same(read(finished), read(tmp_path))


def test_the_encoder_gives_the_codes_of_the_run(finished):
    this = run.open_run(tiny(), finished)
    encoder = Encoder.from_run(finished)
    rows = this.dataset.query
    images = np.stack([this.dataset.read(int(row)) for row in rows])
    # Cached features are float16, so that a few bits can differ.
    encoded = encoder.encode(images)
    kept = codes_file.load(finished / "codes" / "query.npz").codes
    assert np.bitwise_count(encoded ^ kept).sum() <= 2
    packed, _ = encoder.encode_regions(images)
    np.testing.assert_array_equal(encoded, code_lib.to_bytes(packed[:, 0], 12))


@pytest.fixture(scope="module")
def cross_fitted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cross_fitted")
    pipeline.run_stages(cross_fit_config(), workdir)
    return workdir


@pytest.mark.parametrize("after", [19])
def test_an_interrupted_cross_fitted_run_resumes(cross_fitted, tmp_path, monkeypatch, after):
    again = interrupt_and_resume(cross_fit_config(), tmp_path, monkeypatch, after)
    assert_same(read(cross_fitted), again)


def test_the_encoder_gives_the_keep_probabilities_of_the_cross_fitted_run(cross_fitted):
    this = run.open_run(cross_fit_config(), cross_fitted)
    encoder = Encoder.from_run(cross_fitted)
    with np.load(cross_fitted / "codes" / "regions.npz", allow_pickle=False) as kept:
        rows = this.dataset.database[:16]
        packed, keep_prob = encoder.encode_regions(this.region_features[rows])
        np.testing.assert_array_equal(code_lib.to_bytes(packed, 12), kept["codes"][:16])
        np.testing.assert_array_equal(keep_prob, kept["keep_prob"][:16])


def test_a_calibrated_run_of_sets(tmp_path):
    config = cross_fit_config()
    config.agent.update(select="set", calibrate=True, num_steps=4)
    config.encode.keep_threshold = 0.3
    results: Any = pipeline.run_stages(config, tmp_path)
    record = results["calibration"]
    assert record["photos"] == 40
    tried = {row["keep_threshold"]: row for row in record["gains"]}
    chosen = tried[record["keep_threshold"]]
    assert min(chosen["map_lower"], chosen["p_at_h0_lower"]) >= 0
    encoder = Encoder.from_run(tmp_path)
    assert (encoder.select, encoder.keep_threshold) == ("set", record["keep_threshold"])
    kept = read(tmp_path)[1]["database.npz/keep_prob"]
    assert (kept >= record["keep_threshold"]).all() or record["keep_threshold"] > 1
    assert pipeline.verify(tmp_path) == 0
    this = run.open_run(config, tmp_path)
    examples = cross_fit.agent_examples(this, cross_fit.leave_out(this))
    np.testing.assert_array_equal(examples.is_open.sum(2), np.tile([[5, 4, 3]], (40, 1)))
    regions = this.region_features[this.dataset.database[:16]]
    # The most probable region is judged beside the whole image alone, as with `each`.
    each = dataclasses.replace(encoder, select="each")
    of_set, of_each = (x.encode_regions(regions)[1][:, 1:].max(1) for x in (encoder, each))
    np.testing.assert_allclose(of_set, of_each, rtol=1e-5)


def test_each_fold_leaves_its_images_out(cross_fitted):
    this = run.open_run(cross_fit_config(), cross_fitted)
    assert np.bincount(this.folds).tolist() == [20, 20]
    examples = cross_fit.agent_examples(this, cross_fit.leave_out(this))
    assert examples.states.shape == (40, 1, 5, len(evidence.NAMES))
    assert (examples.rewards > 0).any()
    assert (examples.rewards < 0).any()


@pytest.mark.slow
def test_levers_share_the_base_models_of_a_run(cross_fitted, tmp_path):
    arguments = [f"--runs={cross_fitted.parent}", "--features=none.npz", f"--root={tmp_path}"]
    arguments += ["--levers=head_set", f"--names={cross_fitted.name}"]
    assert levers.main(arguments) == 0
    workdir = tmp_path / "head_set" / cross_fitted.name
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"agent"}
    (before, codes), (after, others) = read(cross_fitted), read(workdir)
    assert after["base"] == before["base"]
    assert Encoder.from_run(workdir).select == "set"
    np.testing.assert_array_equal(codes["query.npz/codes"], others["query.npz/codes"])
    np.testing.assert_array_equal(codes["regions.npz/codes"], others["regions.npz/codes"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ksh", "dphn"])
def test_methods_with_their_own_training_cross_fit(method, tmp_path):
    results: Any = pipeline.run_stages(cross_fit_config(method, agent__num_steps=2), tmp_path)
    assert results["mch"]["anhc"] >= 1


@pytest.mark.parametrize("method", ["lsh", "itq", "adsh", "mmhh"])
def test_every_method_runs(method, tmp_path):
    config = tiny(method, agent__num_steps=2)
    results: Any = pipeline.run_stages(config, tmp_path)
    assert 0 < results["base"]["map"] <= 1
    assert ("controls" in results) == (method not in ("lsh", "itq"))


def test_training_of_all_layers(tmp_path):
    config = tiny(base__train_conv=True, base__num_epochs=1, agent__num_steps=2)
    results: Any = pipeline.run_stages(config, tmp_path)
    assert results["mch"]["anhc"] >= 1


def test_a_closed_form_method_ignores_the_batch_size(tmp_path):
    results: Any = pipeline.run_stages(tiny("lsh", base__batch_size=41), tmp_path)
    assert 0 < results["base"]["map"] <= 1


def test_one_device_equals_two(finished, tmp_path, monkeypatch):
    def trained(devices, workdir):
        monkeypatch.setattr(parallel, "usable_devices", lambda size: devices)
        config = tiny(base__num_epochs=1)
        this = run.open_run(config, workdir)
        params = base_stage.train(this)
        return params, paper.train(this, params)

    one, two = trained(1, tmp_path / "one"), trained(2, tmp_path / "two")
    compare = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-6)
    jax.tree.map(compare, one, two)


def test_a_workdir_of_another_config_is_refused(finished):
    config = tiny()
    config.num_bits = 16
    with pytest.raises(ValueError, match=r"num_bits = 12, this one has 16"):
        pipeline.run_stages(config, finished)
