"""What all kinds of backbones have in common: sources, records, probe images, and checks.

A source is a Python function (`package.module:function`) or a file: an ONNX network, or the weights
of one of the networks here. A record says what a source was when a run began: its kind, its width,
the digest of its file, and its features of two fixed probe images, by which another network is
recognised later.
"""

import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from mch_jax import regions
from mch_jax.backbones import functions, networks, onnx_files
from mch_jax.codes import AnyArray
from mch_jax.files import hub, json_values, load_arrays, made_from, save_arrays, schemas
from mch_jax.files.whole import first_line

FILE, EVIDENCE_FILE = "backbone.npz", "evidence_backbone.npz"
FUNCTION, ONNX = "function", "onnx"
MOST = float(np.finfo(np.float16).max)  # features are kept in float16
TOLERANCE = 1e-2  # relative difference of probe features that machines and devices may cause
NUM_PROBES = 2

Network = Callable[[UInt8[np.ndarray, "b s s 3"]], Any]
Given = str | Network | None  # a backbone as users give it again: a source, or the function itself


class Record(NamedTuple):
    """What a backbone was when a run began.

    Attributes:
      kind: `function`, `onnx`, or the name of a network in `networks.NETWORKS`.
      source: Import path of the function, or path of the file, as the run's config names it.
      sha256: SHA-256 of the file; empty for a function.
      mean: Mean of the file's input by channel, for photos in [0, 1].
      std: Standard deviation of the file's input by channel.
      probe: Features of the probe images.
    """

    kind: str
    source: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    probe: Float[np.ndarray, "probes d"]

    @property
    def width(self) -> int:
        """Number d of features of a photo."""
        return self.probe.shape[1]

    def settings(self) -> dict[str, Any]:
        """Returns all but the probe, as JSON can represent it."""
        return {
            "kind": self.kind, "source": self.source, "sha256": self.sha256, "width": self.width,
            "mean": list(self.mean), "std": list(self.std),
        }  # fmt: skip

    def digest(self) -> str:
        """Returns a digest of what the network is, wherever its file lies."""
        settings = json.dumps(self._replace(source="").settings(), sort_keys=True)
        return made_from.digest(settings, self.probe)

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any], probe: np.ndarray) -> "Record":
        """Returns the record of what `settings` returned and of the probe's features.

        Raises:
          ValueError: A setting or the probe's features are not what a record holds.
        """
        json_values.check(settings, schemas.BACKBONE, "backbone")
        kind, width = settings["kind"], settings["width"]
        kinds = (FUNCTION, ONNX, *networks.NETWORKS)
        if kind not in kinds:
            raise ValueError(f"backbone.kind is {kind[:40]!r}, expected one of {', '.join(kinds)}")
        if probe.shape != (NUM_PROBES, width) or probe.dtype != np.float32:
            raise ValueError(
                f"backbone.probe is {probe.dtype} {probe.shape}, expected float32 "
                f"{(NUM_PROBES, width)}"
            )
        mean, std = tuple(settings["mean"]), tuple(settings["std"])
        if len(mean) != 3 or len(std) != 3:
            raise ValueError("backbone.mean and backbone.std have another length than 3")
        return cls(kind, settings["source"], settings["sha256"], mean, std, probe)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network that turns photos into features.

    Attributes:
      record: What the network was when the run began.
      network: The network, or None for one that was not opened.
    """

    record: Record
    network: Network | None
    _lock: Any = dataclasses.field(default_factory=threading.Lock, repr=False, compare=False)

    def __call__(self, images: UInt8[AnyArray, "b s s 3"]) -> Float[np.ndarray, "b d"]:
        """Returns the features of photos at the network's input size, float32. One call at a time.

        Raises:
          ValueError: The network was not opened, raises an error, or returns something else than
            finite features of the recorded width.
        """
        if self.network is None:
            raise ValueError(not_opened(self.record.source))
        with self._lock:
            features = _features(self.network, self.record.source, images)
        if features.shape[1] != self.record.width:
            raise ValueError(
                f"backbone {self.record.source!r} returned {features.shape[1]} features of a "
                f"photo, expected {self.record.width} as before"
            )
        return features

    def of_regions(
        self, images: UInt8[AnyArray, "b s s 3"], boxes: Float[np.ndarray, "t 4"], input_size: int
    ) -> np.ndarray:
        """Returns the features of the same regions of each image, float16 [b t d].

        Args:
          images: Images at the encoder's image size.
          boxes: Boxes of the regions.
          input_size: Side in pixels of the network's input.
        """
        count = len(images)
        images, features = jnp.asarray(images), []
        for box in np.asarray(boxes, np.float32):
            crops = cropped(images, np.tile(box, (count, 1)), np.zeros(count, bool), input_size)
            features.append(self(np.asarray(crops)).astype(np.float16))
        return np.stack(features, 1)


@functools.partial(jax.jit, static_argnums=3)
def cropped(
    images: UInt8[Array, "b h w 3"],
    boxes: Float[Array, "b 4"],
    flips: Bool[Array, " b"],
    input_size: int,
) -> UInt8[Array, "b s s 3"]:
    """Returns one region of each image as photos for a network, rounded to whole numbers."""
    return jnp.rint(regions.crop(images, boxes, input_size, flips)).astype(jnp.uint8)


def probe_images(side: int) -> UInt8[np.ndarray, "2 s s 3"]:
    """Returns two fixed images: slopes with squares of several sizes, and noise.

    They are made of whole numbers alone, and are therefore the same on every machine.
    """
    y, x = np.mgrid[:side, :side]
    squares = (x // max(side // 8, 1) ^ y // max(side // 12, 1)) * 37 % 256
    slopes = np.stack([255 * x // side, 255 * y // side, squares], -1)
    noise = (x * 7919 + y * 104729 + (x * y) * 31) // 7
    noise = np.stack([noise * 13 % 256, noise * 29 % 251, noise * 53 % 241], -1)
    return np.stack([slopes, noise]).astype(np.uint8)


def kind_of(source: str) -> str:
    """Returns the kind that `config.model.backbone` names.

    Raises:
      ValueError: It is none.
    """
    if source in networks.NETWORKS:
        return source
    if source.endswith(".onnx"):
        return ONNX
    if ":" in source:
        return FUNCTION
    raise ValueError(
        f"backbone {source!r} is neither a Python function nor an ONNX file; "
        f"{functions.EXPECTED}, a path that ends in .onnx, or one of {', '.join(networks.NETWORKS)}"
    )


def load(
    source: str,
    input_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    weights: str = "",
) -> Backbone:
    """Opens a backbone and records what it is. The code of a function's module is run.

    Args:
      source: `package.module:function`, the path of an ONNX file, or a key of `networks.NETWORKS`.
      input_size: Side in pixels of the network's input.
      mean: Mean by channel that is subtracted from photos in [0, 1], unless it is a function.
      std: Standard deviation by channel that photos are divided by, unless it is a function.
      weights: Path of the weights of a network in `networks.NETWORKS`.

    Raises:
      ValueError: The source is none, does not open, or does not return features.
    """
    kind, sha256 = kind_of(source), ""
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    if kind == FUNCTION:
        network = functions.find(source)
    else:
        source = source if kind == ONNX else weights
        network, sha256 = _of_file(kind, source, input_size, mean, std)
    return Backbone(
        Record(kind, source, sha256, mean, std, _probed(network, source, input_size)), network
    )


def load_recorded(
    path: Path,
    source: str,
    input_size: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    weights: str = "",
) -> Backbone:
    """Opens the backbone of a run; the first call records what it is, later ones compare it.

    Args:
      path: File of the record.
      source: As for `load`, like the other arguments.
      input_size: Side in pixels of the network's input.
      mean: Mean by channel.
      std: Standard deviation by channel.
      weights: Path of the weights of a network in `networks.NETWORKS`.

    Raises:
      ValueError: The source does not open, or is another network than before.
    """
    recorded, kind = read_record(path), kind_of(source)
    if recorded is None:
        opened = load(source, input_size, mean=mean, std=std, weights=weights)
        save_record(path, opened.record)
        return opened
    if recorded.kind != kind:  # the config decides whether code is run
        raise ValueError(
            f"{path} is of the kind {recorded.kind}, the config names {source}; restore it, or "
            "start a new run"
        )
    file = weights if kind in networks.NETWORKS else source
    return open_again(recorded, file, input_size, run=str(path))


def open_again(record: Record, given: Given, input_size: int, *, run: str) -> Backbone:
    """Opens the backbone of a record and checks that it is the same network.

    A record may come from anyone. The function that it names is therefore only imported if the
    user gives it again. A file is data, and is opened if its digest is the recorded one.

    Args:
      record: The record, such as an encoder's.
      given: The source or the function, or None for the source that is recorded.
      input_size: Side in pixels of the network's input.
      run: Name of the record's file, for error messages.

    Raises:
      ValueError: A function is not given, the source does not open, or it is another network.
    """
    if callable(given):
        source, network = getattr(given, "__qualname__", type(given).__name__), given
    elif record.kind == FUNCTION:
        if not given:
            raise ValueError(f"{run}: {not_opened(record.source)}")
        source, network = given, functions.find(given)
    else:
        source = given or record.source
        network, _ = _of_file(
            record.kind, source, input_size, record.mean, record.std, record.sha256
        )
    check_same(record, _probed(network, source, input_size), source, run)
    return Backbone(record, network)


def _of_file(
    kind: str,
    path: str,
    input_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    sha256: str | None = None,
) -> tuple[Network, str]:
    """Returns the network of an ONNX file or of a file of weights, and the file's SHA-256.

    Args:
      kind: `onnx`, or a key of `networks.NETWORKS`.
      path: Path of the file, or its name on the Hub (`files.hub`).
      input_size: Side in pixels of the network's input.
      mean: Mean by channel, for photos in [0, 1].
      std: Standard deviation by channel.
      sha256: The SHA-256 that the file has to have, if that is known.

    Raises:
      ValueError: The file cannot be read, is another one, or does not hold such a network.
    """
    path = hub.local_path(path)
    content, found = onnx_files.read(path)
    if sha256 not in (None, found):
        raise ValueError(
            f"backbone {path!r} has SHA-256 {found[:12]}..., the run's file has {sha256[:12]}...; "
            "give the run's file by --backbone= (in Python, backbone=)"
        )
    if kind == ONNX:
        return onnx_files.network(path, content, input_size, mean, std), found
    return networks.network(kind, path, input_size, mean, std), found


def check_same(record: Record, probe: Float[np.ndarray, "probes d"], source: str, run: str) -> None:
    """Raises ValueError if features of the probe images are those of another network.

    Args:
      record: The record.
      probe: Features of the probe images.
      source: Name of the network that they come from, for error messages.
      run: Name of the record's file, for error messages.
    """
    if probe.shape == record.probe.shape:
        difference = np.linalg.norm(probe - record.probe)
        if difference <= TOLERANCE * np.linalg.norm(record.probe) + np.finfo(np.float32).tiny:
            return
        came = f"features that differ by {difference / np.linalg.norm(record.probe):.2g}"
    else:
        came = f"{probe.shape[1]} features instead of {record.width}"
    raise ValueError(
        f"backbone {source!r} is another network than that of {run}: it has {came} on the probe "
        "images; restore the network, or train another run"
    )


def not_opened(source: str) -> str:
    """Returns how to open a backbone that was not opened."""
    return (
        f"the run's backbone is the Python function {source}, code that is only run if you name "
        f"it; if you trust it, give --backbone={source} (in Python, backbone=)"
    )


def save_record(path: Path, record: Record) -> None:
    """Writes a record to a file."""
    save_arrays(path, {"probe": record.probe}, record.settings())


def read_record(path: Path) -> Record | None:
    """Returns the record in a file that `save_record` wrote; None if there is no such file.

    Raises:
      ValueError: The file is damaged.
    """
    if not path.exists():
        return None
    tree, settings = load_arrays(path)
    try:
        return Record.of_settings(settings, np.asarray(tree.get("probe", 0)))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({first_line(error)}); restore it, or start a new run"
        ) from None


def _probed(network: Network, source: str, input_size: int) -> Float[np.ndarray, "probes d"]:
    """Returns the features of the probe images, one photo beside the other and each alone."""
    images = probe_images(input_size)
    together = _features(network, source, images)
    alone = np.concatenate([_features(network, source, images[i : i + 1]) for i in range(2)])
    difference = np.linalg.norm(together - alone)
    if difference > TOLERANCE * np.linalg.norm(together) + np.finfo(np.float32).tiny:
        raise ValueError(
            f"backbone {source!r} gives a photo other features alone than beside another photo; "
            "expected a network that is not in training mode"
        )
    return together


def _features(
    network: Network, source: str, images: UInt8[AnyArray, "b s s 3"]
) -> Float[np.ndarray, "b d"]:
    """Calls a network and checks what it returns."""
    try:
        found = np.asarray(network(np.array(images)))  # a copy, which a function may change
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a network may raise anything
        raise ValueError(
            f"backbone {source!r} raised {type(error).__name__} ({first_line(error)}) for uint8 "
            f"photos {list(images.shape)}; expected features [{len(images)}, d]"
        ) from error
    came = f"{found.dtype} {list(found.shape)}"
    is_right = found.dtype.kind == "f" and found.ndim == 2 and len(found) == len(images)
    if not is_right or not 0 < found.shape[1] <= schemas.MAX_WIDTH:
        raise ValueError(
            f"backbone {source!r} returned {came} for {len(images)} photos, expected float32 "
            f"[{len(images)}, d], one row of features per photo"
        )
    if not np.abs(found).max() <= MOST:  # also False for NaN
        raise ValueError(
            f"backbone {source!r} returned features that are NaN or above {MOST:,.0f}; expected "
            "finite numbers within the range of float16, divide larger ones"
        )
    return found.astype(np.float32)
