"""A new method needs only its own file and its line in the table; this one is in closed form."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny

from mch_jax import methods, pipeline
from mch_jax.methods.base import Method
from mch_jax.training import base
from mch_jax.training.run import open_run


def fit(features, labels, num_bits, key, *, scale: float = 1.0, repeats: int = 1):
    """Returns a hash layer of class means, on features less their mean."""
    del key
    features, labels = np.asarray(features), np.asarray(labels)
    means = [features[labels[:, 0] >> c & 1 == 1].mean(0) for c in range(num_bits)]
    kernel = scale * repeats * jnp.asarray(np.nan_to_num(means)).T
    return {"kernel": kernel, "bias": -jnp.asarray(features.mean(0)) @ kernel}


@pytest.fixture
def with_class_means(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "means", Method(closed_form=fit))


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered")
def test_a_new_closed_form_runs(with_class_means, tmp_path):
    results: Any = pipeline.run_stages(tiny("means", base__means_scale=2.0), tmp_path)
    assert results["method"] == "means"
    assert results["base"]["map"] > results["chance_map"]
    assert "controls" not in results  # without a pair loss there is no agent
    again = pipeline.run_stages(tiny("means", base__means_scale=2.0), tmp_path)
    assert again == results


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("means_scal", 1.0, "means_scal: means has no such setting, expected one of: means_scale"),
        ("means_scale", -1.0, "means_scale is -1.0, expected a number of at least 0"),
        ("means_scale", float("nan"), "means_scale is nan, expected a number"),
        ("means_repeats", 0, "means_repeats is 0, expected a whole number of at least 1"),
        ("means_repeats", 1.5, "means_repeats is 1.5, expected a whole number"),
    ],
)
def test_its_settings_are_checked_before_anything_is_written(
    with_class_means, tmp_path, field, value, message
):
    with pytest.raises(ValueError, match=message):
        pipeline.run_stages(tiny("means", **{f"base__{field}": value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_of_other_methods_are_ignored():
    fields = {"adsh_sample": 5, "adsh_gamma": 0.5, "batch_size": 8, "dch_unknown": 1}
    assert methods.training_settings("adsh", fields) == {"sample": 5, "gamma": 0.5}
    assert methods.training_settings("lsh", fields) == {}
    with pytest.raises(ValueError, match="dch has no such setting, expected one of: none"):
        methods.training_settings("dch", fields)


def test_parameters_of_a_loss_are_trained_and_stay_out_of_the_network(tmp_path):
    run = open_run(tiny("hyp2", base__num_epochs=1), tmp_path)
    initial = base.objective_params(run)
    trained = {**run.needed_params(run.initial_params), **initial}
    positions = np.arange(len(run.dataset.train))
    found = base.descend(run, base.STAGE, trained, positions, base.objective_loss(run))
    before, after = (x["objective"]["proxies"] for x in (initial, found))
    assert before.shape == after.shape == (len(run.dataset.classes), 12)
    assert np.abs(after - before).max() > 1e-6
    params = base.train(run)  # restores the checkpoint that the line above wrote
    assert params.keys() == run.initial_params.keys()
    np.testing.assert_array_equal(params["hash"]["kernel"], found["hash"]["kernel"])
