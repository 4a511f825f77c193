"""A run: its config, its data set, its files, and what of them the stages share."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mch_jax import data, methods, pairs, regions
from mch_jax.codes import Encoding
from mch_jax.files import checkpoint
from mch_jax.methods.base import Objective
from mch_jax.models import AlexNet
from mch_jax.training import events, features, features_file, logs, parallel

NUM_REGIONS = len(regions.NAMES)
_resized = jax.jit(regions.crop, static_argnums=2)


def default_workdir(config: Any) -> Path:
    """Returns runs/{data set}_{method}_{bits}_{seed}."""
    name = f"{config.dataset.name}_{config.method}_{config.num_bits}_{config.seed}"
    return Path("runs") / name


@dataclasses.dataclass(frozen=True)
class Run:
    """What the stages of one run share; properties are made on first use and kept."""

    config: Any  # a ConfigDict, whose own stubs know nothing of its fields
    workdir: Path
    dataset: data.Dataset
    audit: Mapping[str, Any]

    @functools.cached_property
    def resolved(self) -> dict[str, Any]:
        """The config as config.json holds it."""
        return _resolved(self.config)

    @functools.cached_property
    def log(self) -> logs.MetricsLog:
        """The run's metrics.jsonl and, where the config says so, TensorBoard's event files."""
        writes_events = self.config.get("tensorboard", False)  # a config of before it has none
        written = events.Events(self.workdir / "events") if writes_events else None
        return logs.MetricsLog(self.workdir / "metrics.jsonl", written)

    @functools.cached_property
    def model(self) -> AlexNet:
        """The base hashing model's network."""
        return base_model(self.config, len(self.dataset.classes))

    @functools.cached_property
    def objective(self) -> Objective:
        """The base hashing model's losses."""
        return methods.objective(self.config.method, self.config.num_bits, **self.config.objective)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Packed labels of every photo."""
        return pairs.pack_labels(self.dataset.labels)

    @functools.cached_property
    def folds(self) -> np.ndarray:
        """The fold [n] of each training photo, for cross-fitted base models."""
        count, num_folds = len(self.dataset.train), self.config.agent.num_folds
        return np.random.default_rng([self.config.seed, 7]).permutation(count) % num_folds

    @functools.cached_property
    def train_place(self) -> np.ndarray:
        """Place in the training set of each row; 0 for rows outside it."""
        place = np.zeros(len(self.dataset.ids), np.int64)
        place[self.dataset.train] = np.arange(len(self.dataset.train))
        return place

    @functools.cached_property
    def similar_fraction(self) -> float:
        """Share of similar pairs in the training set."""
        return pairs.similar_fraction(self.labels[self.dataset.train])

    @functools.cached_property
    def initial_params(self) -> dict[str, Any]:
        """Parameters before training: imported where the config names weights, random elsewhere."""
        if self.config.model.features:
            width = self.given_features.regions.shape[-1]
            return random_head(self.model, width, self.config.seed)
        params = random_params(self.model, self.config.model.input_size, self.config.seed)
        if self.config.model.weights:
            params = checkpoint.import_alexnet(params, self.config.model.weights)
        return params

    def checkpoints(self, stage: str) -> checkpoint.Checkpoints:
        """Returns the checkpoints of a stage."""
        return checkpoint.Checkpoints(self.workdir / "checkpoints" / stage)

    def apply(self, params: Any, batch: Mapping[str, Array], keys: Any = None) -> Encoding:
        """Returns the encoding of images or, where convolutions are fixed, of their features.

        Args:
          params: of the model; those of the convolutions are not needed for their features.
          batch: `image` in [0, 255] at the network's size, or `conv`.
          keys: of dropout, one an example; none without dropout.
        """
        if "conv" in batch:
            conv = batch["conv"].astype(jnp.float32)
            return self.model.apply({"params": params}, conv, keys, method="head")
        return self.model.apply({"params": params}, batch["image"], keys)

    def needed_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters that `apply` needs: the head's alone for fixed convolutions."""
        train_conv = self.config.base.train_conv
        return {k: v for k, v in params.items() if train_conv or not k.startswith("conv")}

    def encode_train(self, params: Any, index: np.ndarray | None = None) -> Encoding:
        """Returns the encodings of whole training photos, on the host.

        Args:
          params: of the model.
          index: places in the training set; all of it when not given.
        """
        index = np.arange(len(self.dataset.train)) if index is None else index
        size, parts = self.config.encode.batch_size * NUM_REGIONS, []
        encode = jax.jit(self.apply)
        params = jax.device_put(jax.device_get(self.needed_params(params)))
        for batch in self._whole_batches(index, size):
            count = len(next(iter(batch.values())))
            batch = {k: parallel.pad_to_multiple(v, size) for k, v in batch.items()}
            if "image" in batch:
                whole = jnp.tile(jnp.asarray(regions.WHOLE)[None], (size, 1))
                batch = {"image": _resized(batch["image"], whole, self.config.model.input_size)}
            encoding = encode(params, batch)
            parts.append([np.asarray(x)[:count] for x in encoding])
        return Encoding(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    def _whole_batches(self, index: np.ndarray, size: int) -> Iterator[dict[str, np.ndarray]]:
        config = self.config
        if config.base.train_conv:
            rows = self.dataset.train[index]
            for batch in data.epoch(self.dataset, rows, config.dataset.image_size, size):
                yield {"image": batch["image"]}
        else:
            for start in range(0, len(index), size):
                yield {"conv": self.train_views[index[start : start + size], 0]}

    def region_batches(self, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Yields photos [b s s 3] as uint8 or, where convolutions are fixed, features [b 6 k]."""
        if self.config.base.train_conv:
            for batch in data.epoch(self.dataset, rows, self.config.dataset.image_size, size):
                yield batch["image"]
        else:
            for start in range(0, len(rows), size):
                yield self.region_features[rows[start : start + size]]

    @functools.cached_property
    def given_features(self) -> features_file.Features:
        """The features that stand in for the convolutions'."""
        config = self.config
        return features_file.load(config.model.features, self.dataset, config.encode.crop_ratio)

    @functools.cached_property
    def train_views(self) -> np.ndarray:
        """Convolutional features [n v k] of training photos: whole, mirrored, random regions."""
        if self.config.model.features:
            return self.given_features.views
        rows = self.dataset.train
        boxes, flips = features.random_views(
            rows, self.config.base.num_views, self.config.encode.crop_ratio
        )
        return self._cached("train_views", rows, boxes, flips)

    @functools.cached_property
    def region_features(self) -> np.ndarray:
        """Convolutional features [n 6 k] of every photo's regions."""
        if self.config.model.features:
            return self.given_features.regions
        rows = np.arange(len(self.dataset.ids))
        boxes = np.tile(
            regions.region_boxes(self.config.encode.crop_ratio)[None], (len(rows), 1, 1)
        )
        return self._cached("regions", rows, boxes, np.zeros(boxes.shape[:2], bool))

    def _cached(self, title: str, rows: np.ndarray, boxes: np.ndarray, flips: np.ndarray):
        return features.cached(
            Path(self.config.cache_dir or self.workdir / "features"),
            f"{self.config.dataset.name}-{title}",
            self.dataset,
            rows,
            boxes,
            flips,
            self.model,
            self.initial_params,
            image_size=self.config.dataset.image_size,
            input_size=self.config.model.input_size,
        )


def open_run(config: Any, workdir: str | os.PathLike[str]) -> Run:
    """Reads and audits the data set of a config, and writes the config into the workdir.

    Raises:
      ValueError: the data set cannot be read or fails its audit, or the workdir is another run's.
    """
    workdir = Path(workdir)
    resolved = _resolved(config)
    path = workdir / "config.json"
    if path.exists():
        before = read_config(workdir)
        old, new = _flat(before), _flat(resolved)
        for key in sorted(old.keys() | new.keys()):
            if key != "tensorboard" and old.get(key) != new.get(key):
                raise ValueError(
                    f"workdir {workdir} is of a run with {key} = {old.get(key)}, this one has "
                    f"{new.get(key)}; use that value, or another workdir"
                )
    dataset = read_dataset(config)
    dataset, counts = data.audit(dataset, config.dataset.on_damaged, workdir / "audit.npz")
    checkpoint.write_json(path, resolved)
    return Run(config, workdir, dataset, counts)


def read_dataset(config: Any) -> data.Dataset:
    """Returns the data set of a config, of a ConfigDict or of what `read_config` returns.

    Nothing of it is checked before `data.audit`.
    """
    chosen = config["dataset"]
    return data.load(chosen["name"], chosen["root"] or None, config["seed"], **chosen["settings"])


def read_config(workdir: Path) -> dict[str, Any]:
    """Returns config.json of a run.

    Raises:
      ValueError: it is missing or damaged.
    """
    return checkpoint.read_json(workdir / "config.json", "start the run again")


def _resolved(config: Any) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        name = prefix + key
        flat |= _flat(value, name + ".") if isinstance(value, Mapping) else {name: value}
    return flat


def base_model(config: Any, num_classes: int) -> AlexNet:
    """Returns the network of a config, with a label head where the agent's recipe needs one."""
    cross_fits = config.agent.recipe == "cross_fit" and config.method in methods.METHODS
    return AlexNet(
        num_bits=config.num_bits,
        hidden=config.model.hidden,
        width=config.model.width,
        num_anchors=config.model.num_anchors if config.method == "ksh" else 0,
        num_classes=num_classes if cross_fits else 0,
    )


def random_params(model: AlexNet, input_size: int, seed: int) -> dict[str, Any]:
    """Returns random parameters: He's normal distribution, 0.01 for the heads, biases zero.

    Made on the host, since compiling the layers' own initialisation takes longer than to train a
    small network.
    """
    images = jax.ShapeDtypeStruct((1, input_size, input_size, 3), jnp.float32)
    return _random_like(jax.eval_shape(model.init, jax.random.key(0), images)["params"], seed)


def random_head(model: AlexNet, width: int, seed: int) -> dict[str, Any]:
    """Returns random parameters, as `random_params`, of what follows features of a width."""
    conv = jax.ShapeDtypeStruct((1, width), jnp.float32)
    init = functools.partial(model.init, method="head")
    return _random_like(jax.eval_shape(init, jax.random.key(0), conv)["params"], seed)


def _random_like(shapes: Any, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, 0])

    def make(path, leaf):
        layer, part = (entry.key for entry in path)
        if part != "kernel":
            return np.zeros(leaf.shape, np.float32)
        std = 0.01 if layer in ("hash", "labels") else np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return rng.normal(0, std, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(make, shapes)
