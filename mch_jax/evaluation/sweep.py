"""Measures of one run over the crop ratio and the keep threshold: Table 3 and Figure 9.

Nothing is trained again. The regions of each ratio are encoded once, and every threshold uses the
same codes and keep probabilities. The base model and the agent are those of the run, which learned
from crops of the run's own ratio.
"""

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mch_jax import codes
from mch_jax.encoder import FILE as ENCODER
from mch_jax.encoder import Encoder
from mch_jax.evaluation import controls, evaluate, results
from mch_jax.files import (
    codes_file,
    made_from,
    read_json,
    read_npz,
    schemas,
    whole_file,
    write_json,
)
from mch_jax.training import claims, encode, run

FILE = "sweep.json"
MEASURES = ("map", "p_at_h0", "r_at_h0", "anhc")


def region_codes(this: run.Run, encoder: Encoder, ratio: float) -> dict[str, np.ndarray]:
    """Returns codes, keep probabilities and boxes of the database's regions at a crop ratio.

    They are computed once and then read from a file of the run.

    Args:
      this: The run.
      encoder: The run's encoder.
      ratio: Crop ratio sigma.
    """
    origin = made_from.digest(*encode.inputs(this).values())
    path = this.workdir / "sweep" / f"{ratio:g}-{origin}.npz"
    if not path.exists():
        config: Any = ConfigDict(this.config)
        config.encode.crop_ratio = ratio
        other = dataclasses.replace(this, config=config)
        encoder = dataclasses.replace(encoder, crop_ratio=ratio)
        rows = this.dataset.database
        packed, keep_prob = encode.encode_rows(
            encoder.encode_regions,
            other.encoder_batches,
            rows,
            batch_size=config.encode.batch_size,
            directory=this.workdir / "parts",
            title=f"database at {ratio:g}",
            made_from=origin,
        )
        box = encoder.code_set(packed, keep_prob, this.dataset.sizes[rows]).box
        with whole_file(path) as temporary:
            packed_bytes = codes.to_bytes(packed, encoder.model.num_bits)
            np.savez_compressed(temporary, codes=packed_bytes, keep_prob=keep_prob, box=box)
        shutil.rmtree(this.workdir / "parts")
    return read_npz(path, "start again", schemas.SWEPT_REGIONS)


def sweep(
    workdir: Path,
    ratios: Sequence[float],
    thresholds: Sequence[float],
    backbone: str | None = None,
) -> list[dict[str, Any]]:
    """Writes sweep.json of a run and returns its rows: measures for every ratio and threshold.

    Args:
      workdir: Directory of a finished run whose method has an agent.
      ratios: Crop ratios sigma, the regions' sides over the image's, above 0 and at most 1.
      thresholds: Keep thresholds xi, from 0 to 1.
      backbone: The run's backbone, which has to be given if it is a Python function.

    Raises:
      ValueError: The run is not finished or has no agent, or a number is out of range.
    """
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f"--ratios has {ratio:g}; expected numbers above 0 and at most 1")
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise ValueError(f"--thresholds has {threshold:g}; expected numbers from 0 to 1")
    if "controls" not in results.read_results(workdir):
        raise ValueError(
            f"{workdir} is a run of a method without an agent, so that thresholds change nothing; "
            "choose another run"
        )
    with claims.claimed(workdir):
        return _sweep(workdir, ratios, thresholds, backbone)


def _sweep(
    workdir: Path, ratios: Sequence[float], thresholds: Sequence[float], backbone: str | None
) -> list[dict[str, Any]]:
    """Writes sweep.json of a run that this process has claimed, and returns its rows."""
    this = run.reopen(workdir, backbone)
    encode.check(this)
    encoder = Encoder.load(workdir / ENCODER)
    query, database = (
        codes_file.load(workdir / "codes" / f"{title}.npz") for title in ("query", "database")
    )
    rows = []
    for ratio in ratios:
        regions = region_codes(this, encoder, ratio)
        for threshold in thresholds:
            kept = regions["keep_prob"] >= threshold
            kept[:, 0] = True
            found = evaluate.measure(query, controls.with_kept(database, regions, kept), [])
            rows.append(
                {"crop_ratio": ratio, "keep_threshold": threshold}
                | {name: found[name] for name in MEASURES}
            )
    write_json(workdir / FILE, {"rows": rows})
    return rows


def read_rows(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of sweep.json of a run; none for a run that was not swept.

    Raises:
      ValueError: The file is damaged.
    """
    path = workdir / FILE
    if not path.exists():
        return []
    return read_json(path, "run mch_jax.sweep again", schemas.SWEEP)["rows"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as lines of text."""
    columns = ("crop_ratio", "keep_threshold", *MEASURES)
    lines = ["".join(f"{name:>16}" for name in columns)]
    lines += ["".join(f"{row[name]:16.4f}" for name in columns) for row in rows]
    return "\n".join(lines)
