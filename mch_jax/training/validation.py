"""Checks the fields of a config before a run begins.

RULES has the rules for single fields, and COMBINATIONS those for several fields together. A field
without a rule may have any value.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mch_jax import backbones, data, methods
from mch_jax.files.schemas import MAX_SIDE, MAX_WIDTH
from mch_jax.index import MAX_BITS
from mch_jax.models import CONV_DTYPES

SMALLEST_INPUT = 63  # the output of AlexNet's last pooling layer is empty for smaller images


class Rule(NamedTuple):
    """A condition on the value of a field.

    Attributes:
      holds: Returns True if the condition holds for a value.
      expected: Description of the values for which it holds.
    """

    holds: Callable[[Any], bool]
    expected: str


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _one_of(*choices: str) -> Rule:
    text = ", ".join(choice or "empty" for choice in choices)
    return Rule(lambda x: x in choices, f"one of {text}")


def _whole(least: int, most: int | None = None) -> Rule:
    text = (
        f"a whole number of at least {least}"
        if most is None
        else f"a whole number from {least} to {most}"
    )
    upper = math.inf if most is None else most
    return Rule(lambda x: _is_number(x) and x == int(x) and least <= x <= upper, text)


def _several(rule: Rule) -> Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) > 0 and all(map(rule.holds, value))

    return Rule(holds, f"one or more, each {rule.expected}")


def _channels(rule: Rule) -> Rule:
    several = _several(rule)
    text = f"three, one per channel, each {rule.expected}"
    return Rule(lambda x: several.holds(x) and len(x) == 3, text)


_BATCH = Rule(
    lambda x: _whole(0).holds(x) and x != 1, "a whole number of at least 2, or 0 for one that fits"
)
_NUMBER = Rule(_is_number, "a number")
_ABOVE_0 = Rule(lambda x: _is_number(x) and x > 0, "a number above 0")
_FROM_0 = Rule(lambda x: _is_number(x) and x >= 0, "a number of at least 0")
_FRACTION = Rule(lambda x: _is_number(x) and 0 <= x <= 1, "a number from 0 to 1")
_RATIO = Rule(lambda x: _is_number(x) and 0 < x <= 1, "a number above 0, at most 1")
_MOMENTUM = Rule(lambda x: _is_number(x) and 0 <= x < 1, "a number from 0 to below 1")
_WIDTH = Rule(lambda x: _is_number(x) and 0 < x <= 1024, "a number above 0, at most 1024")
_MAPPING = Rule(lambda x: hasattr(x, "keys"), "settings of the data set by name")
_TEXT = Rule(lambda x: isinstance(x, str), "text")
_ONNX = Rule(
    lambda x: isinstance(x, str) and (not x or x.endswith(".onnx")),
    "empty, or the path of an ONNX file (.onnx)",
)
_BOOLEAN = Rule(lambda x: isinstance(x, bool), "True or False")

_NAMED = tuple(backbones.NETWORKS)
_WITHOUT_AGENT = [name for name in methods.METHODS if name not in methods.OBJECTIVES]

RULES: Mapping[str, Rule] = {
    "seed": _whole(0, 2**31 - 1),
    "method": Rule(
        lambda x: isinstance(x, str) and x in methods.METHODS,
        f"one of {', '.join(methods.METHODS)}",
    ),
    "num_bits": _whole(1, MAX_BITS),
    "cache_dir": _TEXT,
    "tensorboard": _BOOLEAN,
    "wandb": _TEXT,
    "dataset.name": _one_of(*data.READERS),
    "dataset.root": _TEXT,
    "dataset.image_size": _whole(1, MAX_SIDE),
    "dataset.settings": _MAPPING,
    "dataset.on_damaged": _one_of("refuse", "skip"),
    "similarity.source": _one_of("labels", "neighbours", "pairs", "triplets"),
    "similarity.threshold": _NUMBER,
    "similarity.features": _TEXT,
    "similarity.regions": _one_of("all", "whole"),
    "similarity.num_groups": _whole(1, MAX_WIDTH),
    "similarity.num_nearest": _whole(1, MAX_WIDTH),
    "model.weights": _TEXT,
    "model.features": _TEXT,
    "model.backbone": _TEXT,
    "model.mean": _channels(_NUMBER),
    "model.std": _channels(_ABOVE_0),
    "model.input_size": _whole(SMALLEST_INPUT, MAX_SIDE),
    "model.width": _WIDTH,
    "model.conv_dtype": _one_of(*CONV_DTYPES),
    "model.hidden": _whole(0, MAX_WIDTH),
    "model.num_anchors": _whole(1, MAX_WIDTH),
    "base.train_conv": _BOOLEAN,
    "base.num_epochs": _whole(1),
    "base.batch_size": _BATCH,
    "base.optimizer": _one_of("sgd", "adam"),
    "base.learning_rate": _ABOVE_0,
    "base.hash_rate": _ABOVE_0,
    "base.momentum": _MOMENTUM,
    "base.weight_decay": _FROM_0,
    "base.dropout": _BOOLEAN,
    "base.crop_fraction": _FRACTION,
    "base.warmup": _FRACTION,
    "base.label_weight": _FROM_0,
    "base.num_views": _whole(0),
    "agent.recipe": _one_of("paper", "cross_fit"),
    "agent.num_folds": _whole(2),
    "agent.evidence_features": _TEXT,
    "agent.evidence_backbone": _ONNX,
    "agent.evidence_size": _whole(1, MAX_SIDE),
    "agent.evidence_mean": _channels(_NUMBER),
    "agent.evidence_std": _channels(_ABOVE_0),
    "agent.select": _one_of("each", "set"),
    "agent.calibrate": _BOOLEAN,
    "agent.recall_weight": _FROM_0,
    "agent.optimizer": _one_of("sgd", "adam"),
    "agent.dropout": _MOMENTUM,
    "agent.num_steps": _whole(1),
    "agent.batch_size": _BATCH,
    "agent.learning_rate": _ABOVE_0,
    "agent.momentum": _MOMENTUM,
    "agent.weight_decay": _FROM_0,
    "agent.widths": _several(_whole(1, MAX_WIDTH)),
    "agent.gradient": _one_of("sampled", "exact"),
    "agent.entropy_weight": _FROM_0,
    "agent.reward": _one_of("", *methods.OBJECTIVES),
    "agent.scale_reward": _BOOLEAN,
    "encode.crop_ratio": _RATIO,
    "encode.keep_threshold": _FRACTION,
    "encode.batch_size": _whole(1),
    "evaluate.bucket_k": _several(_whole(1)),
}

_EVIDENCE_EXPECTED = (
    "empty where agent.recipe is paper or base.train_conv is True: cross_fit reads such features "
    "beside those of fixed convolutions"
)

_EVERY_VERSION_HAS = (
    "seed", "method", "num_bits", "dataset.name", "dataset.root", "dataset.settings",
    "dataset.image_size", "encode.crop_ratio", "encode.keep_threshold", "evaluate.bucket_k",
)  # fmt: skip

# Each entry: the field that the error names, the condition on the config, and what is expected.
COMBINATIONS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "base.num_views",
        lambda c: c.base.train_conv or c.method not in methods.OBJECTIVES or c.base.num_views > 0,
        "at least 1 where base.train_conv is False: the agent draws its regions from these views",
    ),
    (
        "similarity.features",
        lambda c: not c.similarity.features or c.similarity.source == "neighbours",
        "empty unless similarity.source is neighbours: only neighbours are found by features",
    ),
    (
        "similarity.num_nearest",
        lambda c: c.similarity.num_nearest <= c.similarity.num_groups,
        "at most similarity.num_groups: a region belongs to the nearest of the groups",
    ),
    (
        "model.width",
        lambda c: c.model.weights != "lpips" or c.model.width == 1,
        "1 where model.weights is lpips: the weights fix the number of channels",
    ),
    (
        "base.train_conv",
        lambda c: not c.model.features or not c.base.train_conv,
        "False where model.features is given: its features stand in for the convolutions",
    ),
    (
        "base.train_conv",
        lambda c: not c.model.backbone or not c.base.train_conv or c.model.backbone in _NAMED,
        f"False where model.backbone is given, unless it is one of {', '.join(_NAMED)}: only these "
        "are trained",
    ),
    (
        "similarity.features",
        lambda c: (
            not (c.model.backbone and c.base.train_conv)
            or c.similarity.source != "neighbours"
            or bool(c.similarity.features)
        ),
        "a file of features where the backbone is trained: neighbours are found before",
    ),
    (
        "model.conv_dtype",
        lambda c: c.model.conv_dtype == "float32" or not (c.model.features or c.model.backbone),
        "float32 where model.features or model.backbone stands in for the convolutions",
    ),
    (
        "model.backbone",
        lambda c: not c.model.backbone or not c.model.features,
        "empty where model.features is given: both stand in for the convolutions",
    ),
    (
        "model.weights",
        lambda c: c.model.backbone not in _NAMED or c.model.weights not in ("", "lpips"),
        f"a file with the network's weights where model.backbone is one of {', '.join(_NAMED)}",
    ),
    (
        "agent.evidence_features",
        lambda c: not c.agent.evidence_features or _takes_evidence(c),
        _EVIDENCE_EXPECTED,
    ),
    (
        "agent.evidence_backbone",
        lambda c: not c.agent.evidence_backbone or _takes_evidence(c),
        _EVIDENCE_EXPECTED,
    ),
    (
        "agent.evidence_backbone",
        lambda c: not (c.agent.evidence_backbone and c.agent.evidence_features),
        "empty where agent.evidence_features is given: both stand in for the label head",
    ),
    (
        "agent.select",
        lambda c: c.agent.select == "each" or c.agent.recipe == "cross_fit",
        "each where agent.recipe is paper: its agent judges every region alone",
    ),
    (
        "agent.calibrate",
        lambda c: not c.agent.calibrate or c.agent.recipe == "cross_fit",
        "False where agent.recipe is paper: its agent leaves no photos out to calibrate on",
    ),
    (
        "agent.reward",
        lambda c: not c.agent.reward or c.method in methods.OBJECTIVES,
        f"empty where method is {' or '.join(_WITHOUT_AGENT)}: these have no agent",
    ),
)


def _takes_evidence(config: Any) -> bool:
    """Returns whether the agent can read features of its own."""
    return config.agent.recipe == "cross_fit" and not config.base.train_conv


def check(config: Any) -> None:
    """Checks the single fields of a config, then combinations of fields.

    Raises:
      ValueError: A field is missing, or its value is not allowed. The text names the first such
        field, its value, and what was expected.
    """
    for name, rule in RULES.items():
        value = _field(config, name)
        if not rule.holds(value):
            raise ValueError(f"config.{name} is {value!r}, expected {rule.expected}")
    for name, holds, expected in COMBINATIONS:
        if not holds(config):
            raise ValueError(f"config.{name} is {_field(config, name)!r}, expected {expected}")
    methods.training_settings(config.method, dict(config.base))
    if config.method in methods.OBJECTIVES:
        methods.objective(config.method, config.num_bits, **config.objective)
        return
    given = {name: value for name, value in config.objective.items() if value is not None}
    if given:
        raise ValueError(
            f"config.objective is {given}, expected nothing: {config.method} has no objective"
        )


def check_saved(config: Mapping[str, Any]) -> None:
    """Checks the fields of a config.json. Those that earlier versions lacked may be missing.

    Raises:
      ValueError: A value is not allowed, or a field is missing that every version has.
    """
    for name, rule in RULES.items():
        try:
            value = _field(config, name)
        except ValueError:
            if name in _EVERY_VERSION_HAS:
                raise ValueError(f"it has no field {name}") from None
            continue
        if not rule.holds(value):
            raise ValueError(f"{name} is {str(value)[:80]}, expected {rule.expected}")


def _field(config: Any, name: str) -> Any:
    value = config
    for part in name.split("."):
        if not hasattr(value, "keys") or part not in value:
            raise ValueError(f"the config has no field {name}; expected all of configs/default.py")
        value = value[part]
    return value
