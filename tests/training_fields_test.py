"""Configs of earlier versions, which lack fields that were added since."""

import copy
import json
import pathlib

import pytest

from configs import default
from mch_jax.evaluation import provenance
from mch_jax.training import fields


@pytest.fixture
def now():
    return json.loads(default.get_config().to_json_best_effort())


@pytest.fixture
def before(now):
    """Returns the same config as an earlier version wrote it."""
    old = copy.deepcopy(now)
    del old["similarity"]
    for name in ("backbone", "mean", "std", "conv_dtype"):
        del old["model"][name]
    for name in ("calibrate", "evidence_features", "select"):
        del old["agent"][name]
    return old


def test_fields_of_parts_that_are_off_have_no_effect(now, before):
    fields.check_same(before, now, pathlib.Path("runs/x"))
    found = fields.effective(now)
    assert set(found) - set(fields.effective(before)) == {
        "agent.calibrate", "agent.evidence_features", "agent.select",
    }  # fmt: skip
    assert found["base.num_epochs"] == now["base"]["num_epochs"]
    before["agent"] |= {name: now["agent"][name] for name in set(now["agent"])}
    assert provenance.config_hash(before) == provenance.config_hash(now)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "backbone", "net.onnx"),
        ("model", "conv_dtype", "bfloat16"),
        ("similarity", "source", "neighbours"),
        ("agent", "select", "set"),
        ("base", "num_epochs", 3),
    ],
)
def test_a_part_that_is_switched_on_is_another_run(now, before, section, field, value):
    old_hash = provenance.config_hash(now)
    now[section][field] = value
    with pytest.raises(ValueError, match=f"{section}.{field} = .*, this one has"):
        fields.check_same(before, now, pathlib.Path("runs/x"))
    assert provenance.config_hash(now) != old_hash


def test_fields_of_a_part_that_is_on_count(now):
    now["model"]["backbone"] = "net.onnx"
    other = copy.deepcopy(now)
    other["model"]["mean"] = [0, 0, 0]
    with pytest.raises(ValueError, match="model.mean"):
        fields.check_same(other, now, pathlib.Path("runs/x"))
