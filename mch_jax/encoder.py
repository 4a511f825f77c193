"""The encoder: photos to the codes of their regions, with a trained base model and policy.

An encoder is independent of the run that trained it. `encoder.npz` in a run's workdir holds
everything it needs.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8, UInt32

from mch_jax import agent, backbones, codes, models, regions, variables
from mch_jax.agent import evidence, label_head, sets
from mch_jax.backbones import networks
from mch_jax.codes import AnyArray
from mch_jax.files import hub, json_values, load_arrays, save_arrays, schemas
from mch_jax.files.whole import first_line
from mch_jax.models import AlexNet, Policy
from mch_jax.query_codes import QueryRegions

FILE = "encoder.npz"
_NUMBERS = ("crop_ratio", "keep_threshold", "image_size", "input_size")


class RegionOutputs(NamedTuple):
    """What an encoder computes for the regions of photos, the whole photo first.

    Attributes:
      packed: Packed codes.
      keep_prob: The policy's probability of keeping each code; 1 for the whole photo.
      logits: Logits of the hash layer, whose signs are the codes.
      label_logits: Logits of the label head, of width zero for a model without one.
    """

    packed: UInt32[AnyArray, "n t w"]
    keep_prob: Float[AnyArray, "n t"]
    logits: Float[AnyArray, "n t q"]
    label_logits: Float[AnyArray, "n t c"]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A trained base model and policy: photos to the codes and keep probabilities of six regions.

    Attributes:
      model: The base hashing model's network.
      params: Parameters of the base hashing model.
      policy: The agent's network, or None for a method without an agent.
      policy_variables: Parameters and batch statistics of the policy and, for an agent that was
        trained on evidence, under `evidence` what the evidence is computed from.
      crop_ratio: Side ratio of the regions, sigma in the paper.
      keep_threshold: Smallest keep probability of a code that is kept, xi in the paper. Above 1, no
        region is kept.
      image_size: Side in pixels to which photos are resized before they are cropped.
      input_size: Side in pixels of the network's input.
      select: `each` to decide on every region alone, `set` to choose one after the other.
      backbone: The network whose features stand in for those of the convolutions; None for an
        encoder that has convolutions, or whose features come from a file.
      evidence_backbone: The network whose features the agent tells labels from; None for an agent
        that reads the base model's, or those of a file.
      evidence_size: Side in pixels of that network's input.
    """

    model: AlexNet
    params: Mapping[str, Any]
    policy: Policy | None
    policy_variables: Mapping[str, Any]
    crop_ratio: float
    keep_threshold: float
    image_size: int
    input_size: int
    select: str = "each"
    backbone: backbones.Backbone | None = None
    evidence_backbone: backbones.Backbone | None = None
    evidence_size: int = 0

    @functools.cached_property
    def _encode(self):
        @functools.partial(jax.jit, static_argnames="num_regions")
        def encode(params, policy_variables, inputs, shown, num_regions):
            boxes = regions.region_boxes(self.crop_ratio)[:num_regions]
            encoding = models.encode_regions(self.model, params, inputs, boxes, self.input_size)
            if shown is not None:
                head = policy_variables["evidence"]["label_head"]
                encoding = encoding._replace(label_logits=label_head.logits(head, shown))
            packed = codes.pack(codes.sign(encoding.logits))
            keep_prob = jnp.ones(packed.shape[:2])
            if self.policy is not None and num_regions > 1:
                prob = keep_probabilities(
                    self.policy, policy_variables, packed, encoding, self.select
                )
                keep_prob = keep_prob.at[:, 1:].set(prob)
            return RegionOutputs(packed, keep_prob, encoding.logits, encoding.label_logits)

        return encode

    @property
    def _num_shown(self) -> int:
        """Number of features that the agent tells labels from; 0 if it reads the base model's."""
        head = self.policy_variables.get("evidence", {}).get("label_head")
        return label_head.num_features(head) if head else 0

    def _check(self, ndim: int, num_regions: int) -> None:
        reads_file = self._num_shown and self.evidence_backbone is None
        if ndim == 4 and num_regions > 1 and reads_file:
            raise ValueError(
                "this run's agent reads labels from a features file "
                "(config.agent.evidence_features), so its encoder cannot choose codes of images; "
                "pass their features, those of the base model first, to encode_regions"
            )
        has_network = "conv1" in self.params or self.backbone is not None or self.model.trunk
        if ndim == 4 and not has_network:
            raise ValueError(
                "this run's features came from a file (config.model.features), so its encoder "
                "cannot encode images; pass their features from the same network to encode_regions"
            )

    def encode_regions(
        self, inputs: Shaped[AnyArray, "..."]
    ) -> tuple[UInt32[np.ndarray, "b t w"], Float[np.ndarray, "b t"]]:
        """Returns packed codes and keep probabilities of all six regions.

        The keep probability of the whole photo, region 0, is 1.

        Args:
          inputs: Images [b s s 3] at `image_size`, or convolutional features [b t k],
            followed by the evidence's features where the agent has some.

        Raises:
          ValueError: Images are given, and the base model or the agent reads features from a file.
        """
        outputs = self.region_outputs(inputs)
        return outputs.packed, outputs.keep_prob

    def region_outputs(self, inputs: Shaped[AnyArray, "..."]) -> RegionOutputs:
        """Returns codes, keep probabilities and logits of all six regions, on the host.

        Args:
          inputs: Images [b s s 3] at `image_size`, or convolutional features [b t k],
            followed by the evidence's features where the agent has some.

        Raises:
          ValueError: Images are given, and the base model or the agent reads features from a file.
        """
        return self._outputs(inputs, regions.NUM_REGIONS)

    def image_function(self) -> Callable[[UInt8[Array, "b s s 3"]], RegionOutputs]:
        """Returns the function that `region_outputs` applies to images, for JAX to trace.

        Its outputs stay on the device, and the number of images may be a symbolic dimension.

        Raises:
          ValueError: The base model or the agent reads features from a file or those of a backbone.
        """
        self._check(4, regions.NUM_REGIONS)
        for field, network in (
            ("model.backbone", self.backbone),
            ("agent.evidence_backbone", self.evidence_backbone),
        ):
            if network is not None:
                raise ValueError(
                    f"this run's features are those of a backbone (config.{field}), which JAX does "
                    "not trace; call region_outputs"
                )

        def function(images):
            # Constants that XLA folds, such as those of batch norm, would round differently. On
            # some processors the barrier does not keep it from that; a sum with a zero that
            # depends on the images does.
            zero = jnp.sum(images[:1, :1, :1, :1]).astype(jnp.float32) * 0.0
            unfolded = jax.tree.map(
                lambda x: x + zero if x.ndim == 1 and x.dtype == np.float32 else x,
                jax.tree.map(jnp.asarray, self.policy_variables),
            )
            known = jax.lax.optimization_barrier((self.params, unfolded))
            return self._encode(*known, images, None, regions.NUM_REGIONS)

        return function

    def _outputs(self, inputs: Shaped[AnyArray, "..."], num_regions: int) -> RegionOutputs:
        self._check(inputs.ndim, num_regions)
        parts = self._parts(inputs, num_regions)
        outputs = self._encode(self.params, self.policy_variables, *parts, num_regions)
        return RegionOutputs(*map(np.asarray, outputs))

    def _parts(
        self, inputs: Shaped[AnyArray, "..."], num_regions: int
    ) -> tuple[Shaped[AnyArray, "..."], Shaped[AnyArray, "..."] | None]:
        """Returns what the base model reads, and the features that labels are told from, if any."""
        if inputs.ndim == 3:
            width = self._num_shown
            return (inputs[..., :-width], inputs[..., -width:]) if width else (inputs, None)
        boxes, own, shown = regions.region_boxes(self.crop_ratio)[:num_regions], inputs, None
        if self.backbone is not None:
            own = self.backbone.of_regions(inputs, boxes, self.input_size)
        if self.evidence_backbone is not None and num_regions > 1:
            shown = self.evidence_backbone.of_regions(inputs, boxes, self.evidence_size)
        return own, shown

    def query(self, inputs: Shaped[AnyArray, "..."], choice: str = "one") -> QueryRegions:
        """Returns the codes that photos are searched with, and their logits.

        Args:
          inputs: Images [b s s 3] at `image_size`, or convolutional features [b t k].
          choice: `one` for the whole photo's code, `agent` for those that the agent keeps, `all`
            for those of all six regions.

        Raises:
          ValueError: Images are given, and the encoder was trained on features from a file.
        """
        num_regions = 1 if choice == "one" else regions.NUM_REGIONS
        return self.query_regions(self._outputs(inputs, num_regions)).chosen(choice)

    def query_regions(self, outputs: RegionOutputs) -> QueryRegions:
        """Returns the codes and logits of regions in the form that queries have."""
        kept = outputs.keep_prob >= self.keep_threshold
        kept[:, 0] = True
        packed = codes.to_bytes(outputs.packed, self.model.num_bits)
        return QueryRegions(packed, kept, outputs.logits)

    def encode(self, images: UInt8[AnyArray, "b s s 3"]) -> UInt8[np.ndarray, "b bytes"]:
        """Returns the codes of whole images at `image_size`, in the form of a codes file.

        Raises:
          ValueError: The encoder was trained on features from a file.
        """
        return codes.to_bytes(self._outputs(images, 1).packed[:, 0], self.model.num_bits)

    def code_set(
        self, packed: np.ndarray, keep_prob: np.ndarray, sizes: np.ndarray
    ) -> codes.CodeSet:
        """Returns the codes with a mask of those that are kept, and the boxes of their regions.

        Args:
          packed: Packed codes [n t w] of `encode_regions`.
          keep_prob: Keep probabilities [n t] of `encode_regions`.
          sizes: Width and height [n 2] of the original photos in pixels; boxes refer to them.
        """
        kept = keep_prob >= self.keep_threshold
        kept[:, 0] = True
        boxes = regions.region_boxes(self.crop_ratio)[None]
        box = regions.pixel_boxes(boxes, sizes[:, None, 0], sizes[:, None, 1])
        return codes.CodeSet(packed, keep_prob, kept, box)

    def save(self, path: Path) -> None:
        """Writes the encoder into one file of plain arrays."""
        settings = {
            "num_bits": self.model.num_bits,
            "hidden": self.model.hidden,
            "width": self.model.width,
            "num_anchors": self.model.num_anchors,
            "num_classes": self.model.num_classes,
            "widths": list(self.policy.widths) if self.policy else None,
            "select": self.select,
        } | {name: getattr(self, name) for name in _NUMBERS}
        if self.model.conv_dtype != "float32":  # files of earlier versions have no such setting
            settings["conv_dtype"] = self.model.conv_dtype
        if self.model.trunk is not None:
            settings["trunk"] = {
                "name": networks.trainable_name(self.model.trunk),
                "mean": list(self.model.mean),
                "std": list(self.model.std),
            }
        tree: dict[str, Any] = {"base": self.params, "policy": self.policy_variables}
        if self.backbone is not None:
            settings["backbone"] = self.backbone.record.settings()
            tree["backbone"] = {"probe": self.backbone.record.probe}
        if self.evidence_backbone is not None:
            record = self.evidence_backbone.record
            settings["evidence_backbone"] = record.settings()
            settings["evidence_size"] = self.evidence_size
            tree["evidence_backbone"] = {"probe": record.probe}
        save_arrays(path, tree, settings)

    @classmethod
    def load(cls, path: Path) -> "Encoder":
        """Returns the encoder in a file that `save` wrote. A backbone is not opened.

        Raises:
          ValueError: The file is missing, damaged, or was written by another version.
        """
        tree, settings = load_arrays(path)
        try:
            widths, select = settings.pop("widths"), settings.pop("select", "each")
            recorded = {
                name: settings.pop(name, None) for name in ("backbone", "evidence_backbone")
            }
            trunk, evidence_size = settings.pop("trunk", None), settings.pop("evidence_size", 0)
            numbers = {name: settings.pop(name) for name in _NUMBERS}
            model = AlexNet(**settings)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path} was written by another version of mch_jax ({error}); run the encode stage "
                "again"
            ) from None
        try:
            json_values.check(settings | numbers, schemas.ENCODER)
            if trunk is not None:
                json_values.check(trunk, schemas.TRUNK, "trunk")
                if trunk["name"] not in networks.NETWORKS:
                    raise ValueError(f"there is no network {trunk['name'][:40]!r}")
                if len(trunk["mean"]) != 3 or len(trunk["std"]) != 3:
                    raise ValueError("trunk.mean and trunk.std have another length than 3")
                model = model.clone(
                    trunk=networks.trainable(trunk["name"]),
                    mean=tuple(trunk["mean"]), std=tuple(trunk["std"]),
                )  # fmt: skip
            json_values.check({"widths": widths or []}, {"widths": [schemas.WIDTH]})
            if select not in ("each", "set"):
                raise ValueError(f"select is {select!r}, expected each or set")
            if model.conv_dtype not in models.CONV_DTYPES:
                raise ValueError(f"conv_dtype is {model.conv_dtype!r}, expected a type of floats")
            policy = Policy(tuple(widths)) if widths else None
            params, policy_variables = tree.get("base", {}), tree.get("policy", {})
            networks_of = {
                name: _unopened(given, tree.get(name, {})) for name, given in recorded.items()
            }
            backbone, other = networks_of["backbone"], networks_of["evidence_backbone"]
            variables.check(
                model, params, policy, policy_variables, numbers["input_size"],
                backbone.record.width if backbone else None,
            )  # fmt: skip
            if other is not None:
                json_values.check({"evidence_size": evidence_size}, {"evidence_size": schemas.SIDE})
                head = policy_variables.get("evidence", {}).get("label_head")
                if head is None or label_head.num_features(head) != other.record.width:
                    raise ValueError("evidence_backbone has no label head of its width")
        except Exception as error:  # noqa: BLE001 - Flax refuses wrong settings in several ways
            raise ValueError(
                f"{path} is damaged ({first_line(error)}); delete it and run the encode stage again"
            ) from None
        return cls(
            model, params, policy, policy_variables, select=select, **networks_of, **numbers,
            evidence_size=evidence_size,
        )  # fmt: skip

    @classmethod
    def from_run(
        cls, workdir: str | os.PathLike[str], backbone: backbones.Given = None
    ) -> "Encoder":
        """Returns the encoder of a finished run, with its backbones opened if it has any.

        A file of `config.agent.evidence_backbone` is looked for where it was in training, then in
        the workdir.

        Args:
          workdir: The workdir of the run.
          backbone: The run's backbone (`config.model.backbone`): its source, or a function from
            uint8 photos to features. A Python function is only called if it is given here; a file
            is looked for where it was in training, unless another path is given.

        Raises:
          ValueError: The run has no encoder yet, or its file is damaged, or the backbone is missing
            or another network than in training.
        """
        path = Path(workdir) / FILE
        encoder = cls.load(path)
        if encoder.evidence_backbone is not None:
            record, source = encoder.evidence_backbone.record, None
            if not (record.source.startswith(hub.PREFIX) or Path(record.source).exists()):
                source = str(path.with_name(Path(record.source).name))
                if not Path(source).exists():
                    raise ValueError(
                        f"{record.source}, the network that the run's agent tells labels from "
                        f"(config.agent.evidence_backbone), is missing; copy it to {source}"
                    )
            opened = backbones.open_again(record, source, encoder.evidence_size, run=str(path))
            encoder = dataclasses.replace(encoder, evidence_backbone=opened)
        if encoder.backbone is None:
            if backbone is not None and backbone != "":
                raise ValueError(
                    f"a backbone is given, but {path} has none (config.model.backbone was empty); "
                    "leave it out"
                )
            return encoder
        opened = backbones.open_again(
            encoder.backbone.record, backbone, encoder.input_size, run=str(path)
        )
        return dataclasses.replace(encoder, backbone=opened)


def _unopened(
    settings: Mapping[str, Any] | None, tree: Mapping[str, Any]
) -> backbones.Backbone | None:
    """Returns the backbone that an encoder's file records, not opened; None without settings."""
    if settings is None:
        return None
    probe = np.asarray(tree.get("probe", 0))
    return backbones.Backbone(backbones.Record.of_settings(settings, probe), None)


def keep_probabilities(
    policy: Policy,
    policy_variables: Mapping[str, Any],
    packed: UInt32[Array, "b t w"],
    encoding: codes.Encoding,
    select: str,
) -> Float[Array, "b regions"]:
    """Returns the probability of keeping each region but the whole image.

    Args:
      policy: The agent's network.
      policy_variables: Its variables and what its input is computed from.
      packed: Packed codes, the whole image's first.
      encoding: Features and logits [b t ...] of the same regions.
      select: With `each`, every region is judged beside the whole image alone (Eq. 8). With `set`,
        the most probable region is taken first, the others are judged anew beside it, and so on; a
        region has the smallest probability up to its turn, so that the regions from a threshold on
        are those of a choice that stops there.
    """
    variables = {name: policy_variables[name] for name in ("params", "batch_stats")}

    def probabilities(kept: Array | None) -> Array:
        state = region_states(packed, encoding, policy_variables, kept)
        logits: Any = policy.apply(variables, state.reshape(-1, state.shape[-1]))
        return jax.nn.softmax(logits)[:, agent.KEEP].reshape(state.shape[:2])

    if select == "each":
        return probabilities(None)
    return sets.by_turns(probabilities, evidence.only_whole(packed)).score


def region_states(
    packed: UInt32[Array, "b t w"],
    encoding: codes.Encoding,
    policy_variables: Mapping[str, Any],
    kept: Bool[Array, "b t"] | None = None,
) -> Float[Array, "b regions s"]:
    """Returns the policy's input for each region but the whole image.

    This is the state of Eq. 3, or the evidence for an agent that was trained on evidence.

    Args:
      packed: Packed codes, the whole image's first.
      encoding: Features and logits [b t ...] of the same regions.
      policy_variables: Variables of the policy; the key `evidence` is present for an agent that
        was trained on evidence.
      kept: Which codes each image has already, for evidence. Defaults to the whole image's alone.
    """
    made_from = policy_variables.get("evidence")
    if made_from is not None:
        reference = evidence.Reference(**made_from["reference"])
        states = evidence.states(
            packed,
            encoding.logits,
            encoding.label_logits,
            made_from["calibration"],
            reference,
            kept,
        )
        flat = states.reshape(-1, states.shape[-1])
        return evidence.normalize(made_from["statistics"], flat).reshape(states.shape)
    whole, *crops = (codes.Encoding(*(x[:, t] for x in encoding)) for t in range(packed.shape[1]))
    return jnp.stack([agent.states(whole, crop) for crop in crops], 1)
