"""Runs a grid of methods, code lengths and seeds; `tables` turns it into tables and figures.

python -m mch_jax.grid --dataset=coco18 --bits=16,32,64 --seeds=0,1,2 --root=runs/coco18
python -m mch_jax.grid --dataset=scenes --methods=dch,mmhh --set=base.num_epochs=10 --jobs=2

Each cell is one run of `mch_jax.main` in its own folder, {data set}_{method}_{bits}_{seed}, whose
agent, codes and controls share one base model. Cells share the features of fixed convolutions. The
same command goes on where it stopped.
"""

import itertools
import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags, logging

from mch_jax import methods
from mch_jax.files import checkpoint
from mch_jax.main import run_command

ALL = (*methods.PROJECTIONS, *methods.METHODS)  # in the order of the paper's Table 2


class Cell(NamedTuple):
    """One run of the grid."""

    dataset: str
    method: str
    num_bits: int
    seed: int

    @property
    def name(self) -> str:
        """Folder of the run."""
        return "_".join(map(str, self))


def cells(
    dataset: str, names: Sequence[str], bits: Sequence[int], seeds: Sequence[int]
) -> list[Cell]:
    """Returns every cell, one seed of everything before the next.

    Raises:
      ValueError: a method is unknown or has no config for the data set.
    """
    for method in names:
        path = Path("configs") / f"{dataset}_{method}.py"
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist; expected a data set with configs here and methods among "
                f"{', '.join(ALL)}"
            )
    product = itertools.product(seeds, bits, names)
    return [Cell(dataset, method, num_bits, seed) for seed, num_bits, method in product]


def claim(root: Path, settings: dict[str, Any]) -> None:
    """Writes down what every cell of a grid has in common, or checks it.

    Raises:
      ValueError: the folder is of a grid with other settings.
    """
    path = root / "grid.json"
    if path.exists():
        before = checkpoint.read_json(path, "choose another --root")
        if before != settings:
            raise ValueError(
                f"--root={root} is of a grid with {json.dumps(before)}, this one has "
                f"{json.dumps(settings)}; use the same, or another --root"
            )
    root.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(path, settings)


def command(cell: Cell, root: Path, changes: Sequence[str]) -> list[str]:
    """Returns the command of a cell."""
    return [
        sys.executable,
        *("-m", "mch_jax.main"),
        f"--config=configs/{cell.dataset}_{cell.method}.py",
        f"--workdir={root / cell.name}",
        f"--config.cache_dir={root / 'features'}",
        f"--config.num_bits={cell.num_bits}",
        f"--config.seed={cell.seed}",
        *(f"--config.{change}" for change in changes),
    ]


def is_done(cell: Cell, root: Path) -> bool:
    """Returns whether a cell's report, the last that a run writes, is there."""
    return (root / cell.name / "report" / "index.html").is_file()


def summary(results: dict[str, Any]) -> str:
    """Returns what a run found, in a few words."""
    base, mch = results["base"], results["mch"]
    return f"mAP {base['map']:.3f}, MCH {mch['map']:.3f} at {mch['anhc']:.2f} codes"


def shares(jobs: int, gpus: Sequence[str]) -> list[tuple[list[int], dict[str, str]]]:
    """Returns cores and environment of each job: cores are shared out, GPUs taken in turn."""
    cores = sorted(os.sched_getaffinity(0))
    environments = [
        {"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {} for job in range(jobs)
    ]
    return [(cores[job::jobs] or cores, environments[job]) for job in range(jobs)]


def run_grid(
    grid: Sequence[Cell], root: Path, changes: Sequence[str], jobs: int, gpus: Sequence[str]
) -> list[str]:
    """Runs the cells that are not done, so many at a time; returns a line for each that failed."""
    waiting = [cell for cell in grid if not is_done(cell, root)]
    logging.info("%d of %d runs are done", len(grid) - len(waiting), len(grid))
    places: queue.SimpleQueue = queue.SimpleQueue()
    for share in shares(jobs, gpus):
        places.put(share)
    done = itertools.count(1)

    def one(cell: Cell) -> str | None:
        place = places.get()
        cores, environment = place
        start = time.monotonic()
        try:
            with open(root / f"{cell.name}.log", "a") as log:
                status = subprocess.run(
                    ["taskset", "-c", ",".join(map(str, cores)), *command(cell, root, changes)],
                    stdout=log,
                    stderr=log,
                    env=os.environ | environment,
                    check=False,
                ).returncode
        finally:
            places.put(place)
        minutes = (time.monotonic() - start) / 60
        if status:
            lines = (root / f"{cell.name}.log").read_text(errors="replace").splitlines() or [""]
            line = f"{cell.name}: exit status {status}: {lines[-1]}"
            logging.error("%s", line)
            return line
        found = summary(checkpoint.read_json(root / cell.name / "results.json", "run it again"))
        logging.info(
            "%d of %d, %s: %s, %.1f min", next(done), len(waiting), cell.name, found, minutes
        )
        return None

    with ThreadPoolExecutor(jobs) as pool:
        return [line for line in pool.map(one, waiting) if line]


def numbers(name: str, values: Sequence[str]) -> list[int]:
    """Returns a flag's whole numbers.

    Raises:
      ValueError: one is not a whole number.
    """
    try:
        return [int(value) for value in values]
    except ValueError:
        raise ValueError(f"--{name}={','.join(values)}; expected whole numbers, as 16,32") from None


def define_flags() -> None:
    """Defines the flags of the command; several commands have flags of one name."""
    flags.DEFINE_string("dataset", None, "Data set, as in configs/{dataset}_{method}.py.")
    flags.DEFINE_list("methods", list(ALL), "Methods, separated by commas.")
    flags.DEFINE_list("bits", ["16", "32", "64"], "Code lengths.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
    flags.DEFINE_string("root", None, "Folder of the runs; runs/{dataset} by default.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time; they share the cores.", lower_bound=1)
    flags.DEFINE_list("gpus", [], "Numbers of the GPUs that the jobs take in turn.")
    flags.DEFINE_multi_string("set", [], "field=value of the config, in every run.")


def main(_: list[str]) -> int:
    """Runs what the flags say."""
    dataset = flags.FLAGS.dataset
    if not dataset:
        raise ValueError("--dataset is missing; expected a name, such as coco18")
    for change in flags.FLAGS.set:
        if "=" not in change:
            raise ValueError(f"--set={change}; expected field=value, as --set=base.num_epochs=30")
    grid = cells(
        dataset,
        flags.FLAGS.methods,
        numbers("bits", flags.FLAGS.bits),
        numbers("seeds", flags.FLAGS.seeds),
    )
    root = Path(flags.FLAGS.root or Path("runs") / dataset)
    claim(root, {"dataset": dataset, "set": sorted(flags.FLAGS.set)})
    failed = run_grid(grid, root, flags.FLAGS.set, flags.FLAGS.jobs, flags.FLAGS.gpus)
    print(f"{len(grid) - len(failed)} of {len(grid)} runs of {root} are done")  # noqa: T201
    if failed:
        print("failed; the same command tries them again:", *failed, sep="\n")  # noqa: T201
    return 1 if failed else 0


if __name__ == "__main__":
    define_flags()
    run_command(main)
