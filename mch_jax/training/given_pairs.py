"""Training with pairs or triplets of similar photos in place of labels.

With `similarity.source = "pairs"` or `"triplets"`, the file pairs.csv or triplets.csv in the data
set's folder says which training photos are similar (`mch_jax.data.similar_pairs`). Groups that
stand for these pairs exactly (`mch_jax.cliques`) take the place of labels, as those of neighbours
do. They are made from the pairs of training photos alone. Labels that the data set has only
measure; if it has none, the pairs of all photos do.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from mch_jax import cliques, data
from mch_jax.data import similar_pairs
from mch_jax.files import made_from
from mch_jax.training import neighbours
from mch_jax.training.neighbours import Neighbours

FILES = {"pairs": similar_pairs.PAIRS, "triplets": similar_pairs.TRIPLETS}


def find(config: Any, workdir: Path, dataset: data.Dataset) -> tuple[Neighbours, data.Dataset]:
    """Returns the groups that training takes for labels, and the data set with what measures.

    Args:
      config: Config of the run.
      workdir: Directory of the run's files.
      dataset: The data set. If it has no labels, the returned one has the groups of the pairs of
        all photos.

    Raises:
      ValueError: The file does not exist or is damaged, or no two training photos are similar.
    """
    path = Path(config.dataset.root) / FILES[config.similarity.source]
    if not path.is_file():
        raise ValueError(
            f"'{path}' does not exist; config.similarity.source = {config.similarity.source} "
            "expects it in config.dataset.root"
        )
    pairs = similar_pairs.read(path, dataset.ids.tolist(), config.similarity.threshold)
    count = len(dataset.ids)

    def make() -> np.ndarray:
        is_train = np.zeros(count, bool)
        is_train[dataset.train] = True
        own = pairs[is_train[pairs].all(1)]
        if not len(own):
            raise ValueError(f"'{path}': no two training photos are similar; expected such pairs")
        return cliques.cover(own, count)

    inputs = {
        "pairs": made_from.digest(pairs),
        "photos": made_from.digest(*dataset.ids.tolist()),
        "training photos": made_from.digest(dataset.train),
        "measures": not dataset.classes,
    }
    found = neighbours.kept(workdir, inputs, make, not dataset.classes)
    return found, dataset if dataset.classes else _measured_by(dataset, pairs)


def _measured_by(dataset: data.Dataset, pairs: Int64[np.ndarray, "k 2"]) -> data.Dataset:
    """Returns a data set whose labels are the groups of pairs."""
    groups = cliques.cover(pairs, len(dataset.ids))
    names = neighbours.class_names(groups.shape[1])
    return dataclasses.replace(dataset, classes=names, labels=groups)
