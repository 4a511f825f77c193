"""Where results come from, and whether they follow from the codes beside them."""

import functools
import hashlib
import importlib.metadata
import json
import math
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mch_jax.files.codes_file import CodeFile
from mch_jax.training import fields

PACKAGES = ("mch_jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow")
# The paths of files and additional logs change no result. What the photos contain is part of the
# hash of the split.
_NOT_HASHED = ("cache_dir", "dataset.root", "tensorboard", "wandb")
TOLERANCE = 1e-9  # for means of the same integers that were summed in another order


def config_hash(config: Mapping[str, Any]) -> str:
    """Returns a hash of a resolved config without fields that change no result, such as paths."""
    plain = json.loads(json.dumps(fields.with_effect(config)))
    for field in _NOT_HASHED:
        *parents, leaf = field.split(".")
        functools.reduce(lambda node, name: node.get(name, {}), parents, plain).pop(leaf, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def split_hash(files: Sequence[CodeFile], made_from: Mapping[str, str] | None = None) -> str:
    """Returns a hash of the names, labels and contents of photos, in order.

    Args:
      files: Codes files of the queries, the database and the training set.
      made_from: Digests of what the codes were made from (`training.encode.read_made_from`). The
        hash depends on those of photos. Without them, for codes of an earlier version, it depends
        on names and labels alone.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in made_from or () if name.endswith(" photos")):
        digest.update(f"{name}: {(made_from or {})[name]}\n".encode())
    for file in files:
        digest.update("\n".join([*map(str, file.ids), str(file.labels.shape)]).encode())
        digest.update(np.ascontiguousarray(file.labels).tobytes())
    return digest.hexdigest()


@functools.cache
def commit() -> str | None:
    """Returns the commit of the checkout that the package runs from, with `+` for changed files.

    Returns None where the package does not run from a checkout or git is not installed.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def provenance(
    config: Mapping[str, Any],
    files: Sequence[CodeFile],
    made_from: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Returns where a result comes from: versions, device, commit, hashes of config and split.

    It holds no time and no path, so that a run repeated on one machine gives the same bytes.

    Args:
      config: Resolved config of the run.
      files: Codes files of the queries, the database and the training set.
      made_from: As for `split_hash`.
    """
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "commit": commit(),
        "config_hash": config_hash(config),
        "split_hash": split_hash(files, made_from),
    }


def _version(name: str) -> str | None:
    """Returns the version of an installed package, None for one used without being installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def differences(stated: Any, recomputed: Any, name: str = "") -> Iterator[str]:
    """Yields a line for each recomputed value that the stated results disagree with.

    Args:
      stated: Results as results.json states them; values that were not recomputed are ignored.
      recomputed: The same nested dictionaries and lists, recomputed.
      name: Path of the value within the results, such as `mch.map`.
    """
    if isinstance(recomputed, Mapping):
        for key, value in recomputed.items():
            inner = stated.get(key) if isinstance(stated, Mapping) else None
            yield from differences(inner, value, f"{name}.{key}" if name else key)
    elif isinstance(recomputed, list):
        if not isinstance(stated, list) or len(stated) != len(recomputed):
            yield f"{name}: {stated} is stated, the codes give {recomputed}"
            return
        for i, (one, other) in enumerate(zip(stated, recomputed, strict=True)):
            yield from differences(one, other, f"{name}[{i}]")
    elif not _agree(stated, recomputed):
        yield f"{name}: {stated} is stated, the codes give {recomputed}"


def _agree(stated: Any, recomputed: Any) -> bool:
    """Returns True for equal values and for numbers within TOLERANCE of each other."""
    numbers = isinstance(stated, int | float) and isinstance(recomputed, int | float)
    if numbers:
        return math.isclose(stated, recomputed, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return stated == recomputed


def num_values(tree: Any) -> int:
    """Returns the number of values in nested dictionaries and lists."""
    if isinstance(tree, Mapping):
        return sum(map(num_values, tree.values()))
    return sum(map(num_values, tree)) if isinstance(tree, list) else 1
