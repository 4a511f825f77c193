"""The variables of an encoder as a file should hold them: names, shapes, types and ranges."""

from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mch_jax.agent import evidence, state
from mch_jax.models import CONV_LAYERS, AlexNet, Policy

Shapes = dict[str, tuple[tuple[int, ...], str]]


def check(
    model: AlexNet,
    params: Mapping[str, Any],
    policy: Policy | None,
    policy_variables: Mapping[str, Any],
    input_size: int,
    given_width: int | None = None,
) -> None:
    """Checks the variables of an encoder against its networks. Nothing is computed.

    Args:
      model: The base hashing model's network.
      params: Its parameters, those of the convolutions left out for features from a file.
      policy: The agent's network, if there is one.
      policy_variables: Its variables.
      input_size: Side in pixels of the network's input.
      given_width: Width of the features that a backbone gives in place of the convolutions.

    Raises:
      ValueError: An array is missing, unknown, or of another shape or type, or a variance is
        negative. The error names the first one.
    """
    found = dict(_leaves(params))
    expected, num_features = _base(model, found, input_size, given_width)
    if policy is not None:
        expected |= _policy(policy, policy_variables, num_features, model)
    elif policy_variables:
        raise ValueError("there are variables of a policy, but no widths of its layers")
    found = {f"base.{name}": array for name, array in found.items()}
    found |= {f"policy.{name}": array for name, array in _leaves(policy_variables)}
    for name in sorted(found.keys() | expected.keys()):
        if name not in found or name not in expected:
            raise ValueError(f"{'unknown' if name in found else 'no'} array {name}")
        shape, dtype = expected[name]
        array = found[name]
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
            )
        if name.endswith((".var", ".std", ".statistics.scale")) and array.min() < 0:
            raise ValueError(f"{name} has the value {array.min()}, expected at least 0")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", np.asarray(value)


def _dense(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    kernel: Shapes = {f"{name}.kernel": ((inputs, outputs), "f4")}
    return kernel | ({f"{name}.bias": ((outputs,), "f4")} if bias else {})


def _convolutions(width: float, side: int) -> tuple[Shapes, int]:
    """Returns the shapes of the convolutions' parameters, and the width of their features."""
    expected, inputs = {}, 3
    for name, channels, window, stride, padding, pooled in CONV_LAYERS:
        outputs = max(1, round(channels * width))
        expected[f"base.{name}.kernel"] = ((window, window, inputs, outputs), "f4")
        expected[f"base.{name}.bias"] = ((outputs,), "f4")
        side = (side + 2 * padding - window) // stride + 1
        side = (side - 3) // 2 + 1 if pooled else side
        inputs = outputs
    return expected, min(side, 6) ** 2 * inputs


def _trunk(trunk: nn.Module, side: int) -> tuple[Shapes, int]:
    """Returns the shapes of a trunk's parameters, and the width of its features."""
    images = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    features, variables = jax.eval_shape(trunk.init_with_output, jax.random.key(0), images)
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    expected = {
        ".".join(["base.trunk", *(str(entry.key) for entry in path)]): (leaf.shape, "f4")
        for path, leaf in leaves
    }
    return expected, features.shape[-1]


def _base(
    model: AlexNet, found: Mapping[str, np.ndarray], input_size: int, given_width: int | None
) -> tuple[Shapes, int]:
    """Returns what the base model's parameters should be, and the width of its features."""
    if given_width is not None:
        expected, width = {}, given_width
    elif model.trunk is not None:
        expected, width = _trunk(model.trunk, input_size)
    elif "conv1.kernel" in found:
        expected, width = _convolutions(model.width, input_size)
    else:
        first = "fc6.kernel" if model.hidden else "hash.kernel"
        first = "hash.anchors" if model.num_anchors and not model.hidden else first
        if first not in found or found[first].ndim != 2:
            raise ValueError(f"no array base.{first} of two axes")
        expected, width = {}, found[first].shape[first == "hash.anchors"]
    if model.hidden:
        expected |= _dense("base.fc6", width, model.hidden)
        expected |= _dense("base.fc7", model.hidden, model.hidden)
        width = model.hidden
    if model.num_anchors:
        num, bits = model.num_anchors, model.num_bits
        shapes = {"anchors": (num, width), "scale": (), "mean": (num,), "projection": (num, bits)}
        expected |= {f"base.hash.{name}": (shape, "f4") for name, shape in shapes.items()}
    else:
        expected |= _dense("base.hash", width, model.num_bits)
    if model.num_classes:
        expected |= _dense("base.labels", width, model.num_classes)
    return expected, width


def _policy(
    policy: Policy, variables: Mapping[str, Any], num_features: int, model: AlexNet
) -> Shapes:
    """Returns what the variables of a policy should be."""
    made_from = variables.get("evidence")
    width = state.width(num_features, model.num_bits)
    expected: Shapes = {}
    if made_from is not None:
        width = len(evidence.NAMES)
        expected = _evidence(dict(_leaves({"evidence": made_from}, "policy.")), model)
    for number, outputs in enumerate(policy.widths):
        expected |= _dense(f"policy.params.Dense_{number}", width, outputs, bias=False)
        for name in (
            "params.{}.scale",
            "params.{}.bias",
            "batch_stats.{}.mean",
            "batch_stats.{}.var",
        ):
            expected[f"policy.{name.format(f'BatchNorm_{number}')}"] = ((outputs,), "f4")
        width = outputs
    return expected | _dense(f"policy.params.Dense_{len(policy.widths)}", width, 2)


def _evidence(found: Mapping[str, np.ndarray], model: AlexNet) -> Shapes:
    """Returns what the variables of the evidence should be; the number of photos is the file's."""
    name = "policy.evidence.reference.packed"
    if name not in found or found[name].ndim != 2:
        raise ValueError(f"no array {name} of two axes")
    num, classes, width = len(found[name]), model.num_classes, evidence.POSTERIOR_WIDTH
    shapes = {
        "reference.packed": ((num, -(-model.num_bits // 32)), "u4"),
        "reference.labels": ((num, classes), "u1"),
        "reference.values": ((num, 2, model.num_bits + 1), "f4"),
        "calibration.shared": ((width,), "f4"),
        "calibration.own": ((classes, width), "f4"),
        "calibration.bias": ((classes,), "f4"),
        "statistics.scale": ((len(evidence.EXPECTED),), "f4"),
        "statistics.mean": ((len(evidence.NAMES),), "f4"),
        "statistics.std": ((len(evidence.NAMES),), "f4"),
    }
    head = "policy.evidence.label_head.hidden_kernel"
    if head in found:  # of an agent that reads labels from a features file
        if found[head].ndim != 3:
            raise ValueError(f"{head} has {found[head].ndim} axes, expected three")
        heads, features, hidden = found[head].shape
        shapes |= {
            "label_head.hidden_kernel": ((heads, features, hidden), "f4"),
            "label_head.hidden_bias": ((heads, hidden), "f4"),
            "label_head.kernel": ((heads, hidden, classes), "f4"),
            "label_head.bias": ((heads, classes), "f4"),
        }
    return {f"policy.evidence.{name}": value for name, value in shapes.items()}
