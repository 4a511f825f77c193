"""Training without labels: photos are similar if regions of them are neighbours.

With `similarity.source = "neighbours"`, every stage of the training takes the groups of
`mch_jax.groups` in place of labels: the base model, the agent's reward, the label head, and the
calibration. Groups are found among the regions of the training photos alone; the others are
assigned to them. Labels that the data set has are hidden from training, and only measure. If it
has none, the groups measure as well, which `results.json` and the report say.

The groups of all photos are kept in `neighbours.npz` of the workdir, so that later stages need no
features.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from mch_jax import batched, data, groups
from mch_jax.files import made_from, read_npz, schemas, whole_file

FILE = "neighbours.npz"
_MOST_REGIONS = 2**16  # regions that the groups are found among; more are drawn at random
_PHOTOS = 256  # photos whose features are read at a time


class Neighbours(NamedTuple):
    """The groups of photos that take the place of labels in training, of neighbours or given pairs.

    Attributes:
      groups: Groups of every photo of the data set, multi-hot.
      made_from: Digest of what they were made from.
      measures: Whether they also measure the codes, because the data set has no labels.
    """

    groups: UInt8[np.ndarray, "n g"]
    made_from: str
    measures: bool


def source(config: Any) -> str:
    """Returns where the similarity in training comes from: `labels`, `neighbours` or given pairs.

    Args:
      config: A ConfigDict, or the resolved config of a run, which may be of an earlier version.
    """
    return dict(config.get("similarity", {})).get("source", "labels")


def class_names(num_groups: int) -> tuple[str, ...]:
    """Returns the names of groups that take the place of classes."""
    return tuple(f"group {i}" for i in range(num_groups))


def find(
    features: Float[np.ndarray, "n t d"],
    dataset: data.Dataset,
    *,
    num_groups: int,
    num_nearest: int,
    seed: int,
) -> UInt8[np.ndarray, "n g"]:
    """Returns the groups of every photo of a data set.

    Args:
      features: Features of regions of each photo.
      dataset: The data set, whose training photos the groups are found among.
      num_groups: Number of groups.
      num_nearest: Number of groups that a region belongs to.
      seed: Seed of the run.

    Raises:
      ValueError: The training photos have fewer regions than there are groups.
    """
    own = features[dataset.train].reshape(-1, features.shape[-1])
    if len(own) < num_groups:
        raise ValueError(
            f"config.similarity.num_groups is {num_groups}, expected at most {len(own)}, the "
            f"number of regions of the {len(dataset.train)} training photos"
        )
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 3))
    if len(own) > _MOST_REGIONS:
        own = own[np.asarray(jax.random.permutation(keys[0], len(own)))[:_MOST_REGIONS]]
    centres = groups.centres(own, num_groups, keys[1])
    return groups.multi_hot(features, np.asarray(centres), num_nearest)


def vectors(features: np.ndarray, pool: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Returns features [n t d] of regions in memory, as float32.

    Args:
      features: Features [n t k], which may be mapped from a file.
      pool: Maps features [b t k] of some photos to their vectors [b t d].
    """
    parts = batched.split(features, _PHOTOS)
    return np.concatenate([np.asarray(pool(part), np.float32) for part in parts])


def kept(
    workdir: Path,
    inputs: Mapping[str, Any],
    make: Callable[[], UInt8[np.ndarray, "n g"]],
    measures: bool,
) -> Neighbours:
    """Returns the groups in the workdir's file, which is written on first use.

    Args:
      workdir: Directory of the run.
      inputs: What the groups depend on, as plain values. A file of other inputs is made again.
      make: Returns the groups of all photos.
      measures: Whether they also measure the codes.
    """
    path = workdir / FILE
    expected = made_from.digest(json.dumps(inputs, sort_keys=True))
    if path.exists():
        try:
            found = read(workdir)
            if found.made_from == expected:
                return found
        except ValueError as error:
            logging.warning("%s", error)
    found = Neighbours(make(), expected, measures)
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **found._asdict())
    return found


def read(workdir: Path) -> Neighbours:
    """Returns the groups of a run that has them.

    Raises:
      ValueError: The file is missing or damaged.
    """
    arrays = read_npz(workdir / FILE, "start the run again", schemas.NEIGHBOURS)
    return Neighbours(arrays["groups"], str(arrays["made_from"]), bool(arrays["measures"]))
