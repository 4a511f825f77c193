"""The variables of an encoder as a file should hold them: names, shapes, types and ranges."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mch_jax.agent import evidence, state
from mch_jax.models import AlexNet, Policy

Shapes = dict[str, tuple[tuple[int, ...], str]]


def check(
    model: AlexNet,
    params: Mapping[str, Any],
    policy: Policy | None,
    policy_variables: Mapping[str, Any],
    input_size: int,
) -> None:
    """Checks the variables of an encoder against its networks. Nothing is computed.

    Args:
      model: The base hashing model's network.
      params: Its parameters, those of the convolutions left out for features from a file.
      policy: The agent's network, if there is one.
      policy_variables: Its variables.
      input_size: Side in pixels of the network's input.

    Raises:
      ValueError: An array is missing, unknown, or of another shape or type, or a variance is
        negative. The error names the first one.
    """
    found = dict(_leaves(params))
    expected, num_features = _base(model, found, input_size)
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


def _shapes(tree: Mapping[str, Any], prefix: str) -> Shapes:
    def leaves(node, name):
        for key, value in node.items():
            if isinstance(value, Mapping):
                yield from leaves(value, f"{name}.{key}")
            else:
                yield f"{name}.{key}", (tuple(value.shape), "f4")

    return dict(leaves(tree, prefix))


def _base(model: AlexNet, found: Mapping[str, np.ndarray], input_size: int) -> tuple[Shapes, int]:
    """Returns what the base model's parameters should be, and the width of its features."""
    if "conv1.kernel" in found:
        inputs, init = (1, input_size, input_size, 3), model.init
    else:
        first = "fc6.kernel" if model.hidden else "hash.kernel"
        first = "hash.anchors" if model.num_anchors and not model.hidden else first
        if first not in found or found[first].ndim != 2:
            raise ValueError(f"no array base.{first} of two axes")
        inputs = (1, found[first].shape[first == "hash.anchors"])
        init = functools.partial(model.init, method="head")
    images = jax.ShapeDtypeStruct(inputs, jnp.float32)
    variables: Any = jax.eval_shape(init, jax.random.key(0), images)
    expected = _shapes(variables["params"], "base")
    name, axis = ("base.hash.anchors", 1) if model.num_anchors else ("base.hash.kernel", 0)
    return expected, expected[name][0][axis]


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
    inputs = jax.ShapeDtypeStruct((1, width), jnp.float32)
    shapes: Any = jax.eval_shape(policy.init, jax.random.key(0), inputs)
    return expected | _shapes(shapes, "policy")


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
    return {f"policy.evidence.{name}": value for name, value in shapes.items()}
