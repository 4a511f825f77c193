"""ONNX files as backbones, run by onnxruntime on the CPU.

The network has one input of four axes, whose layout is read from the file: channels first
[n, 3, h, w] or last [n, h, w, 3]. Floats get photos in [0, 1], normalised by a mean and a standard
deviation; uint8 gets photos as they are. The first output gives the features: [n, d], or a map of
features, which is averaged over its rows and columns.
"""

import hashlib
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mch_jax.files.regular import read_bounded
from mch_jax.files.whole import first_line

MOST_BYTES = 2**31  # the largest ONNX file; larger networks keep their weights in further files
_FOLDER = "session.model_external_initializers_file_folder_path"
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


def read(path: str) -> tuple[bytes, str]:
    """Returns the content of a file and its SHA-256.

    Raises:
      ValueError: The file cannot be read.
    """
    try:
        content = read_bounded(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"backbone {path!r}: {reason}; expected its file") from None
    return content, hashlib.sha256(content).hexdigest()


def network(
    path: str, content: bytes, input_size: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[UInt8[np.ndarray, "b s s 3"]], Float[np.ndarray, "b d"]]:
    """Returns the network of an ONNX file.

    The network is built from the file's bytes alone. Weights in other files are refused, which
    could be any files of this machine.

    Args:
      path: Path of the file, for error messages.
      content: Its content.
      input_size: Side in pixels of the photos.
      mean: Mean by channel, for photos in [0, 1].
      std: Standard deviation by channel.

    Raises:
      ValueError: onnxruntime is not installed, the file is no ONNX file, or the network does not
        take photos of this size.
    """
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            f"backbone {path!r} needs the package onnxruntime; run pip install 'mch_jax[onnx]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    try:
        with tempfile.TemporaryDirectory() as empty:  # weights in other files would be looked for
            options.add_session_config_entry(_FOLDER, empty)
            session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many types
        raise ValueError(
            f"backbone {path!r} is not a network that onnxruntime can run "
            f"({first_line(error)[:200]}); expected an ONNX file that holds all its weights"
        ) from None
    inputs = session.get_inputs()
    is_last, dtype, batch = _layout(path, inputs, input_size)
    name = inputs[0].name
    scale, shift = np.array(std, np.float32), np.array(mean, np.float32)

    def prepared(images: np.ndarray) -> np.ndarray:
        if dtype is not np.uint8:
            images = ((images.astype(np.float32) / 255 - shift) / scale).astype(dtype)
        return np.ascontiguousarray(images if is_last else images.transpose(0, 3, 1, 2))

    def run(images: np.ndarray) -> np.ndarray:
        count = len(images)
        if batch:  # the file fixes the number of photos
            images = np.resize(images, (math.ceil(count / batch) * batch, *images.shape[1:]))
        size = batch or count
        parts: list[Any] = [
            session.run(None, {name: prepared(images[start : start + size])})[0]
            for start in range(0, len(images), size)
        ]
        features = np.concatenate(parts)[:count]
        if features.ndim == 4:  # a map of features
            features = features.mean((1, 2) if is_last else (2, 3))
        return features.astype(np.float32)

    return run


def _layout(path: str, inputs: Sequence[Any], input_size: int) -> tuple[bool, Any, int | None]:
    """Returns whether channels are last, the type of numbers, and the number of photos if fixed."""
    expected = "expected one input [n, 3, h, w] or [n, h, w, 3] of floats or uint8"
    if len(inputs) != 1:
        raise ValueError(f"backbone {path!r} has {len(inputs)} inputs, {expected}")
    shape, kind = list(inputs[0].shape), inputs[0].type
    is_first = len(shape) == 4 and shape[1] == 3
    is_last = len(shape) == 4 and shape[3] == 3 and not is_first
    if kind not in _DTYPES or not (is_first or is_last):
        text = ", ".join(str(x) if isinstance(x, int) else "?" for x in shape)
        raise ValueError(f"backbone {path!r} takes {kind} [{text}], {expected}")
    sides = shape[2:] if is_first else shape[1:3]
    if any(isinstance(side, int) and side != input_size for side in sides):
        text = " x ".join(map(str, sides))
        raise ValueError(
            f"backbone {path!r} takes photos of {text} pixels, model.input_size is {input_size}; "
            "make them equal"
        )
    return is_last, _DTYPES[kind], shape[0] if isinstance(shape[0], int) else None
