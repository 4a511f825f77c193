import importlib
import pathlib
from typing import Any

import pytest
from tiny_run import changed

from configs import default
from mch_jax import pipeline
from mch_jax.training import validation

# The other files in configs are shared by these.
CONFIGS = ["default", *sorted(path.stem for path in pathlib.Path("configs").glob("*_*.py"))]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_file_is_valid(name):
    validation.check(importlib.import_module(f"configs.{name}").get_config())


@pytest.mark.parametrize("field", validation.RULES)
def test_every_rule_refuses_a_value_of_another_type(field):
    with pytest.raises(ValueError, match=rf"config\.{field} is None, expected "):
        validation.check(changed(**{field.replace(".", "__"): None}))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("seed", -1, "at least 0|0 to"),
        ("num_bits", 0, "1 to 64"),
        ("num_bits", 65, "1 to 64"),
        ("num_bits", True, "1 to 64"),
        ("num_bits", 1.5, "1 to 64"),
        ("method", "dhc", "one of lsh, itq, ksh, hashnet, adsh, dch, mmhh"),
        ("dataset__name", "coco17", "one of "),
        ("dataset__on_damaged", "ignore", "one of refuse, skip"),
        ("dataset__image_size", 0, "from 1 to 4096"),
        ("model__input_size", 62, "from 63 to 4096"),
        ("base__optimizer", "adamm", "one of sgd, adam"),
        ("base__learning_rate", 0.0, "above 0"),
        ("base__learning_rate", float("inf"), "above 0"),
        ("base__learning_rate", float("nan"), "above 0"),
        ("base__batch_size", 1, "at least 2"),
        ("base__num_epochs", 0, "at least 1"),
        ("base__crop_fraction", 1.1, "from 0 to 1"),
        ("base__momentum", 1.0, "below 1"),
        ("agent__gradient", "sample", "one of sampled, exact"),
        ("agent__reward", "lsh", "one of empty, ksh"),
        ("agent__widths", (8, 0), "each a whole number from 1 to 1048576"),
        ("agent__widths", (), "one or more"),
        ("encode__crop_ratio", 0.0, "above 0, at most 1"),
        ("encode__crop_ratio", 1.01, "above 0, at most 1"),
        ("encode__keep_threshold", -0.1, "from 0 to 1"),
        ("encode__batch_size", 0, "at least 1"),
        ("evaluate__bucket_k", (0,), "at least 1"),
    ],
)
def test_values_out_of_range_are_refused(field, value, expected):
    name = field.replace("__", ".")
    with pytest.raises(ValueError, match=rf"config\.{name} is .*, expected .*({expected})"):
        validation.check(changed(**{field: value}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base__train_conv": False, "base__num_views": 0}, r"base\.num_views is 0, expected"),
        ({"model__weights": "lpips", "model__width": 0.5}, r"model\.width is 0\.5, expected 1"),
        ({"method": "lsh", "agent__reward": "dch"}, r"agent\.reward is 'dch', expected empty"),
        ({"objective": {"gama": 2.0}}, "dch: unknown setting 'gama', expected one of: gamma"),
        ({"objective": {"gamma": -1.0}}, "gamma is -1.0, expected a number above 0"),
        ({"method": "itq", "objective": {"gamma": 1.0}}, "itq has no objective"),
    ],
)
def test_impossible_combinations_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        validation.check(changed(**fields))


def test_unknown_fields_are_accepted_and_missing_ones_refused():
    validation.check(changed(agent__new_field="anything"))
    config: Any = default.get_config()
    del config.agent.gradient
    with pytest.raises(ValueError, match=r"no field agent\.gradient"):
        validation.check(config)


def test_a_run_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"config\.num_bits is 0"):
        pipeline.run_stages(changed(num_bits=0), tmp_path / "run")
    assert not (tmp_path / "run").exists()
