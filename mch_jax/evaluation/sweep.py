"""Measures of a run at other side ratios of the crops and other keep thresholds.

These are the values of the paper's Table 3 and Figure 9. Nothing is trained. The crops of each
ratio are encoded once, and all thresholds use the same codes and keep probabilities. The base model
and the agent are those of the run, which learned from crops of the run's own ratio.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mch_jax import codes
from mch_jax.evaluation import evaluate
from mch_jax.files import checkpoint, codes_file
from mch_jax.training import encode, run

FILE = "sweep.json"
MEASURES = ("map", "p_at_h0", "r_at_h0", "anhc")


def region_codes(this: run.Run, encoder: encode.Encoder, ratio: float) -> dict[str, np.ndarray]:
    """Returns codes, keep probabilities and boxes of the regions of all database items.

    The first call for a ratio writes them to a file in the workdir, later calls read that file.

    Args:
      this: Run that the database belongs to.
      encoder: Encoder of the run.
      ratio: Side ratio sigma of the crops.
    """
    path = this.workdir / "sweep" / f"{ratio:g}.npz"
    if not path.exists():
        config: Any = ConfigDict(this.config)
        config.encode.crop_ratio = ratio
        other = dataclasses.replace(this, config=config)
        encoder = dataclasses.replace(encoder, crop_ratio=ratio)
        rows = this.dataset.database
        packed, keep_prob = encode.encode_rows(other, encoder, rows, f"database at {ratio:g}")
        box = encoder.code_set(packed, keep_prob, this.dataset.sizes[rows]).box
        with checkpoint.whole_file(path) as temporary:
            packed_bytes = codes.to_bytes(packed, encoder.model.num_bits)
            np.savez_compressed(temporary, codes=packed_bytes, keep_prob=keep_prob, box=box)
        shutil.rmtree(this.workdir / "parts")
    return checkpoint.read_npz(path, "remove it and start again")


def sweep(
    workdir: Path, ratios: Sequence[float], thresholds: Sequence[float]
) -> list[dict[str, Any]]:
    """Returns a row of measures for every ratio and threshold, and writes them to sweep.json.

    Args:
      workdir: Workdir of a finished run whose method has an agent.
      ratios: Side ratios sigma of the crops, above 0 and at most 1.
      thresholds: Keep thresholds xi, from 0 to 1.

    Raises:
      ValueError: The run is not finished or has no agent, or a number is out of range.
    """
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f"--ratios has {ratio:g}; expected numbers above 0 and at most 1")
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise ValueError(f"--thresholds has {threshold:g}; expected numbers from 0 to 1")
    if "controls" not in evaluate.read(workdir):
        raise ValueError(
            f"{workdir} is a run of a method without an agent, so that thresholds change nothing; "
            "choose another run"
        )
    this = run.open_run(ConfigDict(run.read_config(workdir)), workdir)
    encoder = encode.Encoder.from_run(workdir)
    query, database = (
        codes_file.load(workdir / "codes" / f"{title}.npz") for title in ("query", "database")
    )
    rows = []
    for ratio in ratios:
        made = region_codes(this, encoder, ratio)
        for threshold in thresholds:
            kept = made["keep_prob"] >= threshold
            kept[:, 0] = True
            found = evaluate.measures(query, evaluate.with_kept(database, made, kept), [])
            rows.append(
                {"crop_ratio": ratio, "keep_threshold": threshold}
                | {name: found[name] for name in MEASURES}
            )
    checkpoint.write_json(workdir / FILE, {"rows": rows})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the rows as a table in plain text."""
    columns = ("crop_ratio", "keep_threshold", *MEASURES)
    lines = ["".join(f"{name:>16}" for name in columns)]
    lines += ["".join(f"{row[name]:16.4f}" for name in columns) for row in rows]
    return "\n".join(lines)
