"""A run: its config, its data set, its files, and the values that its stages share."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mch_jax import backbones, batched, data, methods, models, pairs, regions
from mch_jax.backbones import networks
from mch_jax.files import (
    Checkpoints,
    import_alexnet,
    made_from,
    read_json,
    write_json,
)
from mch_jax.methods.base import Objective
from mch_jax.models import AlexNet
from mch_jax.training import (
    batch_sizes,
    events,
    features,
    features_file,
    fields,
    given_pairs,
    logs,
    neighbours,
    network,
    validation,
)
from mch_jax.training.neighbours import Neighbours
from mch_jax.training.streams import Stream, generator

# Fields of a config that change no result: paths, additional logs, and what the digests of photos,
# weights and features stand for.
_WITHOUT_EFFECT = {
    "cache_dir", "dataset.root", "dataset.on_damaged", "model.features", "model.weights",
    "model.backbone", "model.mean", "model.std", "agent.evidence_backbone", "agent.evidence_mean",
    "agent.evidence_std", "tensorboard", "wandb",
}  # fmt: skip


def default_workdir(config: Any) -> Path:
    """Returns the workdir of a config by default, runs/{data set}_{method}_{bits}_{seed}."""
    name = f"{config.dataset.name}_{config.method}_{config.num_bits}_{config.seed}"
    return Path("runs") / name


@dataclasses.dataclass(frozen=True)
class Run:
    """The values that the stages of one run share. Properties are computed once, on first use.

    Attributes:
      config: The config, a ConfigDict.
      workdir: Directory of the run's files.
      dataset: The data set, without damaged photos.
      audit: What the audit of the data set counted.
      neighbours: The groups that take the place of labels in training; None if labels are used.
    """

    config: Any
    workdir: Path
    dataset: data.Dataset
    audit: Mapping[str, Any]
    neighbours: Neighbours | None = None

    @functools.cached_property
    def resolved(self) -> dict[str, Any]:
        """The config as plain values, as config.json holds it."""
        return _resolved(self.config)

    @functools.cached_property
    def log(self) -> logs.MetricsLog:
        """The log metrics.jsonl and, if the config asks for them, TensorBoard's and W&B's."""
        sinks = events.sinks(self.config, self.resolved, self.workdir)
        return logs.MetricsLog(self.workdir / "metrics.jsonl", *sinks)

    @functools.cached_property
    def model(self) -> AlexNet:
        """The base model's network."""
        return network.base_model(self.config, self.num_classes)

    @functools.cached_property
    def objective(self) -> Objective:
        """The base hashing model's losses."""
        return methods.objective(self.config.method, self.config.num_bits, **self.config.objective)

    @functools.cached_property
    def target_labels(self) -> np.ndarray:
        """What training takes for labels [n c], multi-hot: those of the data set, or groups."""
        if self.neighbours is None:
            return self.dataset.labels
        return self.neighbours.groups

    @property
    def num_classes(self) -> int:
        """Number of columns of `target_labels`."""
        return self.target_labels.shape[1]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """Packed `target_labels` of every photo of the data set."""
        return pairs.pack_labels(self.target_labels)

    @functools.cached_property
    def train_labels(self) -> np.ndarray:
        """Packed `target_labels` of the training photos."""
        return self.labels[self.dataset.train]

    @functools.cached_property
    def folds(self) -> np.ndarray:
        """Fold [n] of each training photo, for cross-fitted base models."""
        count, num_folds = len(self.dataset.train), self.config.agent.num_folds
        return generator(self.config.seed, Stream.FOLDS).permutation(count) % num_folds

    @functools.cached_property
    def similar_fraction(self) -> float:
        """Fraction of similar pairs in the training set."""
        return pairs.similar_fraction(self.train_labels)

    @functools.cached_property
    def initial_params(self) -> dict[str, Any]:
        """Parameters before training: imported if the config names weights, otherwise random."""
        if self.config.model.features:
            width = self.given_features.regions.shape[-1]
            return network.random_head(self.model, width, self.config.seed)
        if self.backbone is not None:
            return network.random_head(self.model, self.backbone.record.width, self.config.seed)
        params = network.random_params(self.model, self.config.model.input_size, self.config.seed)
        model = self.config.model
        if network.has_trunk(self.config):
            found = networks.import_weights(model.backbone, model.weights, model.input_size)
            return params | {"trunk": networks.folded(found)}
        return import_alexnet(params, model.weights) if model.weights else params

    @functools.cached_property
    def training_inputs(self) -> dict[str, str]:
        """Digests of what the training learns from, by name (`files.made_from`)."""
        config, dataset = self.config, self.dataset
        chosen = {
            name: value
            for name, value in fields.effective(self.resolved).items()
            if name not in _WITHOUT_EFFECT
        }
        found = {
            "config": made_from.digest(json.dumps(chosen, sort_keys=True)),
            "training photos": self.photos_digest(dataset.train),
            "labels of the training photos": self._target_digest(dataset.train),
        }
        if config.model.weights:
            # The mean and the standard deviation of a frozen backbone are in its own digest.
            trunk = [*config.model.mean, *config.model.std] if network.has_trunk(config) else []
            found["initial weights"] = features.fingerprint(self.initial_params, *trunk)
        return found | self._features_digests

    @functools.cached_property
    def encoding_inputs(self) -> dict[str, str]:
        """Digests of what codes are made from, apart from the encoder, by name."""
        dataset = self.dataset
        found = {
            "queries' photos": self.photos_digest(dataset.query),
            "database's photos": self.photos_digest(dataset.database),
            "training photos": self.photos_digest(dataset.train),
            "labels": made_from.digest(
                *dataset.classes, dataset.labels[dataset.query], dataset.labels[dataset.database]
            ),
        }
        if self.neighbours is not None:
            found["neighbours"] = made_from.digest(self.neighbours.groups)
        return found | self._features_digests

    def _target_digest(self, rows: np.ndarray) -> str:
        """Returns a digest of what training takes for the labels of photos."""
        classes = () if self.neighbours is not None else self.dataset.classes
        return made_from.digest(*classes, self.target_labels[rows])

    @functools.cached_property
    def _features_digests(self) -> dict[str, str]:
        """Digests of the features files that the config names."""
        config = self.config
        files = {
            "features file": config.model.features,
            "evidence's features file": config.agent.get("evidence_features", ""),  # old runs
        }
        found = {name: made_from.digest_file(path) for name, path in files.items() if path}
        if self._is_on_backbone:
            record = backbones.read_record(self.workdir / backbones.FILE)
            found["backbone"] = (record or self._opened_backbone.record).digest()
        if config.agent.get("evidence_backbone", ""):
            record = backbones.read_record(self.workdir / backbones.EVIDENCE_FILE)
            found["evidence's network"] = (record or self._opened_evidence.record).digest()
        return found

    def photos_digest(self, rows: np.ndarray) -> str:
        """Returns a digest of the names, places in the data set and contents of photos."""
        if self.dataset.digests is None:
            raise ValueError(f"{self.dataset.name} has no digests; expected an audited data set")
        ids = "\0".join(self.dataset.ids[rows].tolist())
        return made_from.digest(ids, rows, self.dataset.digests[rows])

    def checkpoints(self, stage: str, **earlier: str) -> Checkpoints:
        """Returns the checkpoints of a stage.

        Args:
          stage: Name of the stage.
          **earlier: Digests of models that an earlier stage trained and this one learns from.
        """
        names = {name.replace("_", " "): value for name, value in earlier.items()}
        directory = self.workdir / "checkpoints" / stage
        return Checkpoints(directory, made_from=self.training_inputs | names)

    def needed_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters that encoding needs: all, or the head's on fixed convolutions."""
        return dict(params) if self.config.base.train_conv else models.without_convolutions(params)

    def region_batches(self, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Yields photos [b s s 3] as uint8 or, if convolutions are fixed, their features [b 6 k].

        Args:
          rows: Rows of the photos in the data set.
          size: Number of photos in a batch; the last batch may have fewer.
        """
        if self.config.base.train_conv:
            for batch in data.epoch(self.dataset, rows, self.config.dataset.image_size, size):
                yield batch["image"]
        else:
            for part in batched.split(rows, size):
                yield self.region_features[part]

    @functools.cached_property
    def given_features(self) -> features_file.Features:
        """The features of a file that stand in for those of the convolutions."""
        config = self.config
        return features_file.load(config.model.features, self.dataset, config.encode.crop_ratio)

    @functools.cached_property
    def backbone(self) -> backbones.Backbone | None:
        """The network that stands in for the convolutions, if the config names one.

        The first use records in the workdir what the network is; later uses compare it.

        Raises:
          ValueError: The network does not open, or is another one than before.
        """
        return self._opened_backbone if self._is_on_backbone else None

    @property
    def _is_on_backbone(self) -> bool:
        """Whether a frozen backbone gives the features. Configs of old runs lack the field."""
        has_backbone = bool(self.config.model.get("backbone", ""))
        return has_backbone and not network.has_trunk(self.config)

    @functools.cached_property
    def _opened_backbone(self) -> backbones.Backbone:
        model = self.config.model
        return backbones.load_recorded(
            self.workdir / backbones.FILE, model.backbone, model.input_size,
            mean=model.mean, std=model.std, weights=model.weights,
        )  # fmt: skip

    @property
    def evidence_backbone(self) -> backbones.Backbone | None:
        """The network whose features the agent tells labels from, if the config names one.

        The first use records in the workdir what the network is; later uses compare it.

        Raises:
          ValueError: The network does not open, or is another one than before.
        """
        named = self.config.agent.get("evidence_backbone", "")  # missing in configs of old runs
        return self._opened_evidence if named else None

    @functools.cached_property
    def _opened_evidence(self) -> backbones.Backbone:
        chosen = self.config.agent
        return backbones.load_recorded(
            self.workdir / backbones.EVIDENCE_FILE, chosen.evidence_backbone, chosen.evidence_size,
            mean=chosen.evidence_mean, std=chosen.evidence_std,
        )  # fmt: skip

    @functools.cached_property
    def evidence_features(self) -> features_file.Features | None:
        """The features that the agent tells labels from; None for those of the base model."""
        config, network = self.config, self.evidence_backbone
        path = config.agent.get("evidence_features", "")  # missing in configs of old runs
        if path:
            return features_file.load(path, self.dataset, config.encode.crop_ratio)
        if network is None:
            return None
        size = config.agent.evidence_size
        return features_file.Features(
            self._cached("evidence-regions", self._region_views, network, size),
            self._cached("evidence-train_views", self._random_views, network, size),
        )

    def encoder_batches(self, rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Yields what the run's encoder takes: `region_batches`, with evidence's features behind.

        Args:
          rows: Rows of the photos in the data set.
          size: Number of photos in a batch; the last batch may have fewer.
        """
        batches = self.region_batches(rows, size)
        if self.evidence_features is None:
            yield from batches
            return
        for part, batch in zip(batched.split(rows, size), batches, strict=True):
            yield np.concatenate([batch, self.evidence_features.regions[part]], -1)

    @functools.cached_property
    def train_views(self) -> np.ndarray:
        """Convolutional features [n v k] of training photos: whole, mirrored, random regions."""
        if self.config.model.features:
            return self.given_features.views
        return self._cached("train_views", self._random_views)

    @functools.cached_property
    def region_features(self) -> np.ndarray:
        """Convolutional features [n 6 k] of the regions of every photo of the data set."""
        if self.config.model.features:
            return self.given_features.regions
        return self._cached("regions", self._region_views)

    @property
    def _random_views(self) -> features.Views:
        """The views of training photos that models are trained on."""
        return features.random_views(
            self.dataset.train, self.config.base.num_views, self.config.encode.crop_ratio
        )

    @property
    def _region_views(self) -> features.Views:
        """The regions of every photo of the data set that are encoded."""
        rows = np.arange(len(self.dataset.ids))
        return features.region_views(rows, self.config.encode.crop_ratio)

    def _cached(
        self,
        title: str,
        views: features.Views,
        backbone: backbones.Backbone | None = None,
        input_size: int = 0,
    ) -> np.ndarray:
        """Returns the features of views; a backbone other than the run's has its own input size."""
        backbone = backbone or self.backbone
        directory = Path(self.config.cache_dir or self.workdir / "features")
        title = f"{self.config.dataset.name}-{title}"
        sizes = {
            "image_size": self.config.dataset.image_size,
            "input_size": input_size or self.config.model.input_size,
        }
        if backbone is not None:
            return features.of_backbone(directory, title, self.dataset, views, backbone, **sizes)
        return features.cached(
            directory, title, self.dataset, views, self.model, self.initial_params, **sizes
        )


def open_run(config: Any, workdir: str | os.PathLike[str]) -> Run:
    """Reads and audits the data set of a config, and writes the config into the workdir.

    Args:
      config: Config of the run, a ConfigDict.
      workdir: Directory of the run's files.

    Raises:
      ValueError: The data set cannot be read, fails its audit or is smaller than a batch, or the
        workdir belongs to a run with another config.
    """
    workdir = Path(workdir)
    path = workdir / "config.json"
    if path.exists():
        saved = read_config(workdir)
        config = batch_sizes.chosen_before(config, saved)
        fields.check_same(saved, _resolved(config), workdir)
    dataset = read_dataset(config)
    source = neighbours.source(config)
    batch_sizes.check(config, len(dataset.train))
    if not dataset.classes and source == "labels":
        raise ValueError(
            f"{dataset.name}: the photos have no labels, which config.similarity.source = labels "
            "needs; add labels.csv, or set --config.similarity.source=neighbours"
        )
    dataset, counts = data.audit(dataset, config.dataset.on_damaged, workdir / "audit.npz")
    config = batch_sizes.fitted(config, len(dataset.train))
    batch_sizes.check(config, len(dataset.train))  # again, without damaged photos
    write_json(path, _resolved(config))
    this = Run(config, workdir, dataset, counts)
    if source == "labels":
        return this
    if source == "neighbours":
        found, dataset = _neighbours(this)
    else:
        found, dataset = given_pairs.find(config, workdir, dataset)
    audit = {**counts, **data.label_counts(dataset)} if found.measures else counts
    return dataclasses.replace(this, neighbours=found, dataset=dataset, audit=audit)


def _neighbours(this: Run) -> tuple[Neighbours, data.Dataset]:
    """Returns the groups of neighbours, and the data set, with them as labels if it has none."""
    config, dataset = this.config, this.dataset
    chosen, given = config.similarity, config.similarity.features or config.model.features
    has_backbone = bool(config.model.get("backbone", ""))
    if given:
        origin = made_from.digest_file(given)
    elif has_backbone:
        origin = this._features_digests["backbone"]
    else:
        convolutions = {k: v for k, v in this.initial_params.items() if k.startswith("conv")}
        sizes = (config.dataset.image_size, config.model.input_size)
        origin = features.fingerprint(convolutions, *sizes)
    inputs = {
        "features": origin,
        "photos": this.photos_digest(np.arange(len(dataset.ids))),
        "training photos": made_from.digest(dataset.train),
        "crop_ratio": config.encode.crop_ratio,
        "seed": config.seed,
        "groups": [chosen.num_groups, chosen.num_nearest, chosen.regions],
        "measures": not dataset.classes,
    }

    def make():
        if chosen.features:
            of_regions = features_file.load(given, dataset, config.encode.crop_ratio).regions
        else:
            of_regions = this.region_features
        is_map = not given and not has_backbone
        num_regions = regions.NUM_REGIONS if chosen.regions == "all" else 1
        # Where in a map something is seen says little about what it is.
        pool = functools.partial(models.mean_over_places, this.model) if is_map else np.asarray
        vectors = neighbours.vectors(of_regions[:, :num_regions], pool)
        settings = {"num_groups": chosen.num_groups, "num_nearest": chosen.num_nearest}
        return neighbours.find(vectors, dataset, seed=config.seed, **settings)

    found = neighbours.kept(this.workdir, inputs, make, not dataset.classes)
    if found.measures:
        names = neighbours.class_names(found.groups.shape[1])
        dataset = dataclasses.replace(dataset, classes=names, labels=found.groups)
    return found, dataset


def reopen(workdir: Path, backbone: str | None = None) -> Run:
    """Opens a finished run again, with the config in its workdir.

    Args:
      workdir: Directory of the run's files.
      backbone: The run's backbone, which has to be given if it is a Python function.

    Raises:
      ValueError: As `open_run`, or the backbone is not given or is not the run's.
    """
    config: Any = ConfigDict(read_config(workdir))
    source = config.model.get("backbone", "")  # missing in configs of old runs
    if backbone is not None and backbone != source:
        raise ValueError(
            f"--backbone={backbone} is not the backbone of {workdir}, {source or 'which has none'}"
        )
    if source and not backbone and backbones.kind_of(source) == backbones.FUNCTION:
        raise ValueError(f"{workdir}: {backbones.not_opened(source)}")
    return open_run(config, workdir)


def read_dataset(config: Any) -> data.Dataset:
    """Returns the data set of a config, which is not audited yet.

    Readers that draw something get the seed of the config, unless the settings have another.

    Args:
      config: A ConfigDict, or the result of `read_config`.
    """
    chosen = config["dataset"]
    settings = {"seed": config["seed"], **chosen["settings"]}
    return data.load(chosen["name"], chosen["root"] or None, **settings)


def read_config(workdir: Path) -> dict[str, Any]:
    """Returns config.json of a run.

    Raises:
      ValueError: The file is missing or damaged, or a field has a value that no run can have.
    """
    path = workdir / "config.json"
    config = read_json(path, "start the run again")
    try:
        validation.check_saved(config)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; restore it, or start a new run") from None
    return config


def _resolved(config: Any) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())
