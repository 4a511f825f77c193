"""The batch sizes of a run: those that fit a training set, checked before any work."""

import copy
from collections.abc import Mapping
from typing import Any

from mch_jax import methods, regions

# What 0 stands for where the training set is large enough.
USUAL = {"base": 128, "agent": 2048}


def limits(config: Any, count: int) -> dict[str, tuple[int, str]]:
    """Returns the largest batch of each stage that is trained in batches, and what it consists of.

    Args:
      config: Config of the run.
      count: Number of training photos.
    """
    has_agent = config.method in methods.OBJECTIVES
    cross_fits = has_agent and config.agent.recipe == "cross_fit"
    photos, what, left_out = count, f"{count} training photos", ""
    if cross_fits:
        photos = count - -(-count // config.agent.num_folds)  # without the largest fold
        left_out = f", of which one in {config.agent.num_folds} is left out in turn"
    found = {}
    if cross_fits or not methods.METHODS[config.method].closed_form:
        found["base"] = photos, what + left_out
    if cross_fits:
        num_crops = regions.NUM_REGIONS - 1
        learns_from = photos if config.agent.calibrate else count
        left_out = left_out if config.agent.calibrate else ""
        found["agent"] = num_crops * learns_from, f"{what} with {num_crops} crops{left_out}"
    elif has_agent:
        found["agent"] = count, what
    return found


def check(config: Any, count: int) -> None:
    """Checks the batch sizes of a config against the number of training photos.

    Raises:
      ValueError: A stage's batch has more examples than there are.
    """
    for stage, (most, what) in limits(config, count).items():
        size = config[stage].batch_size
        if most < 2:
            raise ValueError(f"there are {what}; expected more photos to train on")
        if size > most:
            raise ValueError(
                f"{stage}.batch_size is {size}, expected 2 to {most}: there are {what}; set "
                f"--config.{stage}.batch_size={_fitting(stage, most)}"
            )


def chosen_before(config: Any, saved: Mapping[str, Any]) -> Any:
    """Returns the config with the batch sizes of a saved one in place of 0."""
    config = copy.deepcopy(config)
    for stage in USUAL:
        if config[stage].batch_size == 0:
            config[stage].batch_size = saved[stage]["batch_size"]
    return config


def fitted(config: Any, count: int) -> Any:
    """Returns the config with batch sizes that fit in place of 0.

    They are powers of two, at most those of USUAL.

    Args:
      config: Config of the run.
      count: Number of training photos.
    """
    config = copy.deepcopy(config)
    found = limits(config, count)
    for stage, usual in USUAL.items():
        if config[stage].batch_size == 0:
            config[stage].batch_size = _fitting(stage, found[stage][0]) if stage in found else usual
    return config


def _fitting(stage: str, most: int) -> int:
    return min(USUAL[stage], 1 << max(1, most.bit_length() - 1))
