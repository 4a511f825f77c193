"""Networks from elsewhere that turn photos into features, in place of AlexNet's convolutions.

  backbone: What all kinds have in common: sources, records, probe images, checks of features.
  functions: Python functions by their import path.
  networks: ResNet-50 and Vision Transformers in Flax, with torchvision's or timm's weights.
  onnx_files: ONNX files, run by onnxruntime.

A backbone is frozen, apart from networks in Flax that are trained as `AlexNet.trunk`.
docs/backbones.md describes how a run is trained on one.
"""

from mch_jax.backbones.backbone import (
    EVIDENCE_FILE,
    FILE,
    FUNCTION,
    Backbone,
    Given,
    Record,
    cropped,
    kind_of,
    load,
    load_recorded,
    not_opened,
    open_again,
    read_record,
    save_record,
)
from mch_jax.backbones.networks import NETWORKS

__all__ = [
    "EVIDENCE_FILE",
    "FILE",
    "FUNCTION",
    "NETWORKS",
    "Backbone",
    "Given",
    "Record",
    "cropped",
    "kind_of",
    "load",
    "load_recorded",
    "not_opened",
    "open_again",
    "read_record",
    "save_record",
]
