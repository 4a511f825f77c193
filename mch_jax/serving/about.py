"""What the page tells about a run: what its encoder has learned from, and photos to try."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from mch_jax.data import Dataset, composer
from mch_jax.evaluation import read_results
from mch_jax.training import neighbours

MAX_EXAMPLES = 14
MAX_LABELS = 40
# Scenes show pieces of halves of photos. These photos look unlike their halves as a whole.
_UNLIKE_THEIR_HALVES = ("astronaut", "coffee", "pagoda")


class Example(NamedTuple):
    """A photo to search with, which is not in the database.

    Attributes:
      name: Its name.
      read: Returns its pixels, or raises ValueError.
    """

    name: str
    read: Callable[[], UInt8[np.ndarray, "h w 3"]]


def knowledge(run: Path, config: Mapping[str, Any], dataset: Dataset | None) -> str:
    """Returns a sentence or two on what the encoder of a run has learned.

    Args:
      run: Workdir of the run.
      config: Config of the run.
      dataset: The run's data set; None if it cannot be read here.
    """
    counts: Mapping[str, Any] = {}
    if (run / "results.json").exists():
        counts = read_results(run)["dataset"]
    name = config["dataset"]["name"]
    photos = f"{counts['train']:,} photos" if counts else "the training photos"
    begin = f"The encoder has learned from {photos} of the data set {name}"
    source = neighbours.source(config)
    if source == "neighbours":
        return f"{begin} which photos have regions that look alike. It has seen no labels."
    if source != "labels":
        return f"{begin} which photos are similar by {source}.csv. It has seen no labels."
    classes = dataset.classes if dataset is not None else ()
    shown = ", ".join(label.replace("_", " ") for label in classes[:MAX_LABELS])
    more = f" and {len(classes) - MAX_LABELS:,} more" if len(classes) > MAX_LABELS else ""
    told = f"these labels apart: {shown}{more}" if shown else "its labels apart"
    return (
        f"{begin} to tell {told}. It knows nothing else: a photo of another thing gets answers "
        "too, which may mean little."
    )


def examples(config: Mapping[str, Any], dataset: Dataset | None) -> tuple[Example, ...]:
    """Returns photos to search with: the photos that scenes are made of, or queries of a data set.

    Args:
      config: Config of the run.
      dataset: The run's data set; None if it cannot be read here.
    """
    if dataset is None:
        return ()
    if config["dataset"]["name"] == "scenes":
        names = (name for name in dataset.classes if name not in _UNLIKE_THEIR_HALVES)
        return tuple(Example(name, functools.partial(composer.photo, name)) for name in names)
    read, rows = dataset.read, dataset.query[:MAX_EXAMPLES].tolist()
    return tuple(Example(str(dataset.ids[row]), functools.partial(read, row)) for row in rows)
