"""The keep threshold of a run whose agent is calibrated (`agent.calibrate`).

A policy is trained without each fold, so that the keep probabilities of a fold's photos come from a
base model and a policy that have not seen them. `agent.calibration` then chooses the threshold by
what the kept codes gain on these photos.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Float

from mch_jax import batched, encoder
from mch_jax.agent import calibration
from mch_jax.codes import Encoding
from mch_jax.files import read_json, schemas, write_json
from mch_jax.training import policy
from mch_jax.training.encodings import RegionEncodings
from mch_jax.training.run import Run

FILE = "calibration.json"


def calibrate(
    run: Run,
    folds: Sequence[tuple[Bool[np.ndarray, " n"], RegionEncodings]],
    policies: Sequence[Mapping[str, Any]],
) -> None:
    """Writes the threshold and its estimated gains into calibration.json.

    Args:
      run: The run.
      folds: Which training photos each fold leaves out, and their encodings by its base model.
      policies: For each fold, the variables of a policy that was trained without its photos, and
        under `evidence` what its states are computed from.
    """
    config = run.config
    tried = calibration.thresholds(config.encode.keep_threshold)
    labels = run.target_labels[run.dataset.train]
    trials = []
    for (out, encoded), variables in zip(folds, policies, strict=True):
        keep_prob = probabilities(config, encoded, variables)
        trials.append(
            [
                calibration.trial(encoded.packed, keep_prob, labels[out], config.num_bits, value)
                for value in tried
            ]
        )
    rows = calibration.gains(trials, len(labels))
    chosen = calibration.choose(rows, config.agent.recall_weight)
    logging.info("keep threshold %g, %.2f codes per training photo", chosen.threshold, chosen.codes)
    record = {
        "keep_threshold": chosen.threshold,
        "photos": len(labels),
        "gains": [_as_json(row) for row in rows],
    }
    write_json(run.workdir / FILE, record)


def _as_json(row: calibration.Gain) -> dict[str, float]:
    found = {"keep_threshold": row.threshold, "codes": row.codes}
    for name, mean, lower in zip(calibration.MEASURES, row.mean, row.lower, strict=True):
        found |= {name: mean, f"{name}_lower": lower}
    return found


def probabilities(
    config: Any, encoded: RegionEncodings, variables: Mapping[str, Any]
) -> Float[np.ndarray, "n t"]:
    """Returns the keep probabilities of the regions of photos, 1 for the whole photo.

    Args:
      config: Config of the run.
      encoded: Encodings of the photos' regions.
      variables: Variables of a policy and, under `evidence`, what states are computed from.
    """

    @jax.jit
    def keep(variables, batch):
        encoding = Encoding(batch.logits, batch.logits, batch.label_logits)
        return encoder.keep_probabilities(
            policy.network(config), variables, batch.packed, encoding, config.agent.select
        )

    size = config.encode.batch_size
    parts = zip(*(batched.split(x, size) for x in encoded), strict=True)
    prob = batched.apply_all(
        functools.partial(keep, variables), (RegionEncodings(*part) for part in parts), size
    )
    return np.concatenate([np.ones((len(prob), 1), np.float32), prob], 1)


def chosen(run: Run) -> float | None:
    """Returns the calibrated keep threshold, or None for a run whose agent is not calibrated."""
    if not run.config.agent.get("calibrate", False):  # missing in configs of old runs
        return None
    path = run.workdir / FILE
    return read_json(path, "run the agent stage", schemas.CALIBRATION)["keep_threshold"]
