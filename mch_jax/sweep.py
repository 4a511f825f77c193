"""How much the side ratio of crops and the keep threshold matter: Table 3 and Figure 9.

python -m mch_jax.sweep --run=runs/coco18/coco18_dch_32_0
python -m mch_jax.sweep --run=runs/demo --ratios=0.3,0.5 --thresholds=0.1,0.5,0.9

Nothing is trained again. Crops of each ratio are encoded once, and every threshold reads the same
codes and keep probabilities. The base model and the agent are those of the run, which learned from
crops of the run's own ratio.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from mch_jax import codes
from mch_jax.evaluation import evaluate
from mch_jax.files import checkpoint, codes_file
from mch_jax.main import run_command
from mch_jax.training import encode, run

FILE = "sweep.json"
MEASURES = ("map", "p_at_h0", "r_at_h0", "anhc")


def region_codes(this: run.Run, encoder: encode.Encoder, ratio: float) -> dict[str, np.ndarray]:
    """Returns codes, keep probabilities and boxes of the database's regions at a ratio.

    They are read from a file of the run, which is made on first use.
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
    """Returns a row of measures for every ratio and threshold, and writes them into the run.

    Args:
      workdir: of a finished run whose method has an agent.
      ratios: side ratios sigma of the crops, above 0 and at most 1.
      thresholds: keep thresholds xi, between 0 and 1.

    Raises:
      ValueError: the run is not finished or has no agent, or a number is out of range.
    """
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise ValueError(f"--ratios has {ratio:g}; expected numbers above 0 and at most 1")
    for threshold in thresholds:
        if not 0 <= threshold <= 1:
            raise ValueError(f"--thresholds has {threshold:g}; expected numbers from 0 to 1")
    if "controls" not in evaluate.read(workdir):
        raise ValueError(f"{workdir} is of a method without an agent; a threshold changes nothing")
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
    """Returns the rows as lines of text for people."""
    columns = ("crop_ratio", "keep_threshold", *MEASURES)
    lines = ["".join(f"{name:>16}" for name in columns)]
    lines += ["".join(f"{row[name]:16.4f}" for name in columns) for row in rows]
    return "\n".join(lines)


def define_flags() -> None:
    """Defines the flags of the command; several commands have flags of one name."""
    flags.DEFINE_string("run", None, "Workdir of a finished run whose method has an agent.")
    flags.DEFINE_list("ratios", ["0.3", "0.5", "0.7", "0.9"], "Side ratios sigma.")
    flags.DEFINE_list(
        "thresholds", ["0", "0.1", "0.3", "0.5", "0.7", "0.9", "1"], "Keep thresholds xi."
    )


def main(_: list[str]) -> None:
    """Sweeps what the flags say."""
    if not flags.FLAGS.run:
        raise ValueError("--run is missing; expected the workdir of a finished run")
    try:
        ratios, thresholds = (
            [float(x) for x in given] for given in (flags.FLAGS.ratios, flags.FLAGS.thresholds)
        )
    except ValueError:
        raise ValueError("--ratios and --thresholds take numbers, as 0.3,0.5") from None
    print(table(sweep(Path(flags.FLAGS.run), ratios, thresholds)))  # noqa: T201


if __name__ == "__main__":
    define_flags()
    run_command(main)
