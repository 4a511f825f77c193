"""Stage 3: several codes per image (Sec. 4.3), and the encoder that other programs use."""

import dataclasses
import functools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8, UInt32

from mch_jax import agent, codes, methods, models, regions
from mch_jax.agent import evidence
from mch_jax.files import checkpoint, codes_file
from mch_jax.methods import base as losses
from mch_jax.models import AlexNet, Policy
from mch_jax.training import logs, parallel
from mch_jax.training.run import Run

FILE = "encoder.npz"
PART = 2048  # photos whose codes are lost at most when a run is killed
NUM_REGIONS = len(regions.NAMES)
HostOrDevice = Array | np.ndarray
_NUMBERS = ("crop_ratio", "keep_threshold", "image_size", "input_size")


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A trained base model and policy: photos to the codes and keep probabilities of six regions.

    Attributes:
      model: the base hashing model's network.
      params: its parameters.
      policy: the agent's network, or None for a method without an agent.
      policy_variables: its parameters and batch statistics.
      crop_ratio: sigma, the regions' side ratio.
      keep_threshold: xi.
      image_size: photos are squashed to this before they are cropped.
      input_size: of the network's input.
    """

    model: AlexNet
    params: Mapping[str, Any]
    policy: Policy | None
    policy_variables: Mapping[str, Any]
    crop_ratio: float
    keep_threshold: float
    image_size: int
    input_size: int

    @functools.cached_property
    def _encode(self):
        @functools.partial(jax.jit, static_argnames="num_regions")
        def encode(params, policy_variables, inputs, num_regions):
            boxes = regions.region_boxes(self.crop_ratio)[:num_regions]
            encoding = models.encode_regions(self.model, params, inputs, boxes, self.input_size)
            packed = codes.pack(codes.sign(encoding.logits))
            keep_prob = jnp.ones(packed.shape[:2])
            if self.policy is not None and num_regions > 1:
                state = region_states(packed, encoding, policy_variables)
                logits: Any = self.policy.apply(
                    {name: policy_variables[name] for name in ("params", "batch_stats")},
                    state.reshape(-1, state.shape[-1]),
                )
                prob = jax.nn.softmax(logits)[:, agent.KEEP].reshape(state.shape[:2])
                keep_prob = keep_prob.at[:, 1:].set(prob)
            return packed, keep_prob

        return encode

    def _check(self, inputs: Shaped[HostOrDevice, "..."]) -> None:
        if inputs.ndim == 4 and "conv1" not in self.params:
            raise ValueError(
                "this run's features came from a file (config.model.features), so that it cannot "
                "encode photos; give encode_regions their features, from the same network"
            )

    def encode_regions(
        self, inputs: Shaped[HostOrDevice, "..."]
    ) -> tuple[UInt32[np.ndarray, "b t w"], Float[np.ndarray, "b t"]]:
        """Returns packed codes and keep probabilities of all regions.

        Args:
          inputs: photos [b s s 3] at `image_size`, or convolutional features [b t k].
        """
        self._check(inputs)
        packed, keep_prob = self._encode(self.params, self.policy_variables, inputs, NUM_REGIONS)
        return np.asarray(packed), np.asarray(keep_prob)

    def encode(self, images: UInt8[HostOrDevice, "b s s 3"]) -> UInt8[np.ndarray, "b bytes"]:
        """Returns the codes of whole photos at `image_size`, as queries have them."""
        self._check(images)
        packed, _ = self._encode(self.params, self.policy_variables, images, 1)
        return codes.to_bytes(np.asarray(packed)[:, 0], self.model.num_bits)

    def code_set(self, packed: np.ndarray, keep_prob: np.ndarray, sizes: np.ndarray):
        """Returns the codes that are kept, with boxes in pixels of photos of these sizes."""
        kept = keep_prob >= self.keep_threshold
        kept[:, 0] = True
        boxes = regions.region_boxes(self.crop_ratio)[None]
        box = regions.pixel_boxes(boxes, sizes[:, None, 0], sizes[:, None, 1])
        return codes.CodeSet(packed, keep_prob, kept, box)

    def save(self, path: Path) -> None:
        """Writes everything that encoding needs into one file of plain arrays."""
        settings = {
            "num_bits": self.model.num_bits,
            "hidden": self.model.hidden,
            "width": self.model.width,
            "num_anchors": self.model.num_anchors,
            "num_classes": self.model.num_classes,
            "widths": list(self.policy.widths) if self.policy else None,
        } | {name: getattr(self, name) for name in _NUMBERS}
        variables = {"base": self.params, "policy": self.policy_variables}
        checkpoint.save_arrays(path, variables, settings)

    @classmethod
    def load(cls, path: Path) -> "Encoder":
        """Returns what `save` wrote.

        Raises:
          ValueError: the file is missing, damaged or of another version.
        """
        variables, settings = checkpoint.load_arrays(path)
        try:
            widths = settings.pop("widths")
            numbers = {name: settings.pop(name) for name in _NUMBERS}
            return cls(
                model=AlexNet(**settings),
                params=variables["base"],
                policy=Policy(tuple(widths)) if widths else None,
                policy_variables=variables.get("policy", {}),
                **numbers,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path} was written by another version of mch_jax ({error}); run the encode stage "
                "again"
            ) from None

    @classmethod
    def from_run(cls, workdir: str | os.PathLike[str]) -> "Encoder":
        """Returns the encoder of a finished run.

        Raises:
          ValueError: the run has none yet, or its file is damaged.
        """
        return cls.load(Path(workdir) / FILE)


def region_states(
    packed: UInt32[Array, "b t w"], encoding: codes.Encoding, policy_variables: Mapping[str, Any]
) -> Float[Array, "b regions s"]:
    """Returns what the policy sees of each region: Eq. 3, or evidence if it learned from that."""
    made_from = policy_variables.get("evidence")
    if made_from is not None:
        reference = evidence.Reference(**made_from["reference"])
        states = evidence.states(
            packed, encoding.logits, encoding.label_logits, made_from["calibration"], reference
        )
        flat = states.reshape(-1, states.shape[-1])
        return evidence.normalize(made_from["statistics"], flat).reshape(states.shape)
    whole, *crops = (codes.Encoding(*(x[:, t] for x in encoding)) for t in range(packed.shape[1]))
    return jnp.stack([agent.states(whole, crop) for crop in crops], 1)


def encoder(run: Run, params: Mapping[str, Any], policy_variables: Mapping[str, Any]) -> Encoder:
    """Returns the encoder of a run's models; without policy variables it keeps every code."""
    config = run.config
    return Encoder(
        model=run.model,
        params=params,
        policy=Policy(tuple(config.agent.widths)) if policy_variables else None,
        policy_variables=policy_variables,
        crop_ratio=config.encode.crop_ratio,
        keep_threshold=config.encode.keep_threshold,
        image_size=config.dataset.image_size,
        input_size=config.model.input_size,
    )


def encode_rows(run: Run, encoder: Encoder, rows: np.ndarray, title: str):
    """Returns packed codes [n 6 w] and keep probabilities [n 6] of photos.

    Each part is a file of its own until all are there, so that a killed run goes on.
    """
    size = run.config.encode.batch_size
    parts = []
    starts = range(0, len(rows), PART)
    for start in logs.progress(starts, len(starts), f"codes of the {title}"):
        path = run.workdir / "parts" / f"{title}-{start}.npz"
        if not path.exists():
            block = rows[start : start + PART]
            results = list(_encode_block(run, encoder, block, size))
            packed, keep_prob = (np.concatenate(x) for x in zip(*results, strict=True))
            with checkpoint.whole_file(path) as temporary:
                np.savez(temporary, packed=packed, keep_prob=keep_prob)
        with np.load(path, allow_pickle=False) as part:
            parts.append((part["packed"], part["keep_prob"]))
    packed, keep_prob = (np.concatenate(x) for x in zip(*parts, strict=True))
    return packed, keep_prob


def _encode_block(run: Run, encoder: Encoder, rows: np.ndarray, size: int):
    for batch in run.region_batches(rows, size):
        results = encoder.encode_regions(parallel.pad_to_multiple(batch, size))
        yield tuple(x[: len(batch)] for x in results)


def true_rewards(run: Run, packed: np.ndarray, rows: np.ndarray, is_train: np.ndarray):
    """Returns the reward [n 6] of keeping each region's code, by the photos' true labels.

    What an oracle would go by, and what the agent is compared with; 0 for the whole photo.
    """
    num_bits, num_train, labels = run.config.num_bits, int(is_train.sum()), run.labels[rows]
    table = losses.loss_table(run.objective, num_bits, run.similar_fraction)
    train = (packed[is_train, 0].T, labels[is_train].T, np.ones(num_train, np.int32))

    @jax.jit
    def rewards(own, region, labels):
        histogram = agent.reward_histogram(own[:, None], region, labels, *train, num_bits)
        return agent.rewards(histogram, table, num_train)

    slots = range(1, packed.shape[1])
    columns = [rewards(packed[:, 0], packed[:, slot], labels) for slot in slots]
    return np.stack([np.zeros(len(rows), np.float32), *map(np.asarray, columns)], 1)


def encode(run: Run, encoder: Encoder) -> None:
    """Writes the codes of queries, database and training set (Sec. 4.3), and the encoder."""
    dataset, num_bits, directory = run.dataset, run.config.num_bits, run.workdir / "codes"
    encoder.save(run.workdir / FILE)
    for title, rows in (("queries", dataset.query), ("database", dataset.database)):
        packed, keep_prob = encode_rows(run, encoder, rows, title)
        code_set = encoder.code_set(packed, keep_prob, dataset.sizes[rows])
        ids, labels = dataset.ids[rows], dataset.labels[rows]
        if title == "queries":  # a query has one code (Sec. 4.4)
            single = codes.CodeSet(*(x[:, :1] for x in code_set))
            codes_file.save(directory / "query.npz", codes.flatten(single, ids, labels, num_bits))
            continue
        is_train = np.isin(rows, dataset.train)
        own = codes.CodeSet(*(x[is_train] for x in code_set))
        train_file = codes.flatten(own, ids[is_train], labels[is_train], num_bits)
        reward = np.zeros(keep_prob.shape, np.float32)
        if run.config.method in methods.OBJECTIVES:
            reward = true_rewards(run, packed, rows, is_train)
        with checkpoint.whole_file(directory / "regions.npz") as temporary:
            np.savez_compressed(
                temporary,
                codes=codes.to_bytes(packed, num_bits),
                keep_prob=keep_prob,
                reward=reward,
                box=code_set.box,
            )
        codes_file.save(directory / "train.npz", train_file)
        codes_file.save(directory / "database.npz", codes.flatten(code_set, ids, labels, num_bits))
    shutil.rmtree(run.workdir / "parts")


def is_done(run: Run) -> bool:
    """Returns whether the codes of a run are there; database.npz is the last file written."""
    return (run.workdir / "codes" / "database.npz").exists()
