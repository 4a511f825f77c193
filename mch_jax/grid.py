"""Runs a grid of methods, code lengths and seeds.

python -m mch_jax.grid --dataset=coco18 --bits=16,32,64 --seeds=0,1,2 --root=runs/coco18
python -m mch_jax.grid --dataset=scenes --methods=dch,mmhh --set=base.num_epochs=10 --jobs=2

Each cell of the grid is one run of mch_jax.main in the folder {data set}_{method}_{bits}_{seed}.
The cells share the features of fixed convolutions. Rerun the same command to resume, and see
mch_jax.tables for tables and figures of the runs.
"""

import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags, logging

from mch_jax import command, config_files, machine
from mch_jax.files import read_json, schemas, write_json


class Cell(NamedTuple):
    """A method, code length and seed of the grid, which is one run."""

    dataset: str
    method: str
    num_bits: int
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's folder, below the folder of the grid."""
        return "_".join(map(str, self))


def cells(
    dataset: str, methods: Sequence[str], bits: Sequence[int], seeds: Sequence[int]
) -> list[Cell]:
    """Returns all cells of a grid, ordered by seed, then code length, then method.

    Raises:
      ValueError: A method is unknown or has no config for the data set.
    """
    for method in methods:
        if f"{dataset}_{method}" not in config_files.names():
            names = sorted(name.rpartition("_")[::2] for name in config_files.names())
            datasets = dict.fromkeys(name for name, _ in names)
            if dataset in datasets:
                known = (name for data, name in names if data == dataset)
                expected = f"a method of {', '.join(known)}"
            else:
                expected = f"a data set of {', '.join(datasets)}"
            raise ValueError(f"{dataset}_{method}.py does not exist; expected {expected}")
    product = itertools.product(seeds, bits, methods)
    return [Cell(dataset, method, num_bits, seed) for seed, num_bits, method in product]


def all_methods() -> list[str]:
    """Returns the names of all methods, in the order of the paper's Table 2."""
    from mch_jax import methods  # imports JAX, which the help need not wait for

    return list(methods.METHODS)


def claim(root: Path, settings: dict[str, Any]) -> None:
    """Writes the settings that all cells of a grid share to grid.json, or compares them with it.

    Raises:
      ValueError: The folder belongs to a grid with other settings.
    """
    path = root / "grid.json"
    if path.exists():
        before = read_json(path, "choose another --root", schemas.GRID)
        if before != settings:
            raise ValueError(
                f"--root={root} holds a grid with {json.dumps(before)}, this one has "
                f"{json.dumps(settings)}; use the same, or another --root"
            )
    root.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def run_command(cell: Cell, root: Path, changes: Sequence[str]) -> list[str]:
    """Returns the command that runs a cell, as a list of arguments."""
    return [
        sys.executable,
        *("-m", "mch_jax.main"),
        f"--config={cell.dataset}_{cell.method}",
        f"--workdir={root / cell.name}",
        f"--config.cache_dir={root / 'features'}",
        f"--config.num_bits={cell.num_bits}",
        f"--config.seed={cell.seed}",
        *(f"--config.{change}" for change in changes),
    ]


def is_done(cell: Cell, root: Path) -> bool:
    """Returns True if a cell's run has a report, which is the last file that a run writes."""
    return (root / cell.name / "report" / "index.html").is_file()


def summary(results: dict[str, Any]) -> str:
    """Returns the main measures of a run in a few words."""
    base, mch = results["base"], results["mch"]
    return f"mAP {base['map']:.3f}, MCH {mch['map']:.3f} at {mch['anhc']:.2f} codes"


def resources(jobs: int, gpus: Sequence[str]) -> list[tuple[list[int], dict[str, str]]]:
    """Returns the cores and the environment variables of each job.

    The cores are divided among the jobs; each job gets one of the GPUs in turn.
    """
    cores = machine.cores()
    environments = [
        {"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {} for job in range(jobs)
    ]
    return [(cores[job::jobs] or cores, environments[job]) for job in range(jobs)]


def pinned(cores: Sequence[int]) -> list[str]:
    """Returns the beginning of a command that keeps to some cores; empty without `taskset`."""
    return ["taskset", "-c", ",".join(map(str, cores))] if shutil.which("taskset") else []


def run_grid(
    grid: Sequence[Cell], root: Path, changes: Sequence[str], jobs: int, gpus: Sequence[str]
) -> list[str]:
    """Runs the cells that are not done yet and returns one line for each that failed.

    Args:
      grid: Cells of the grid.
      root: Folder of the grid.
      changes: Changes of the config in all cells, as `field=value`.
      jobs: Maximum number of runs at the same time.
      gpus: Numbers of the GPUs that the jobs use; empty for all that are visible.
    """
    waiting = [cell for cell in grid if not is_done(cell, root)]
    logging.info("%d of %d runs are done", len(grid) - len(waiting), len(grid))
    free: queue.SimpleQueue = queue.SimpleQueue()
    for job in resources(jobs, gpus):
        free.put(job)
    done = itertools.count(1)

    def run(cell: Cell) -> str | None:
        job = free.get()
        cores, environment = job
        start = time.monotonic()
        try:
            with open(root / f"{cell.name}.log", "a") as log:
                status = subprocess.run(
                    [*pinned(cores), *run_command(cell, root, changes)],
                    stdout=log,
                    stderr=log,
                    env=os.environ | environment,
                    check=False,
                ).returncode
        finally:
            free.put(job)
        minutes = (time.monotonic() - start) / 60
        if status:
            lines = (root / f"{cell.name}.log").read_text(errors="replace").splitlines() or [""]
            line = f"{cell.name}: exit status {status}: {lines[-1]}"
            logging.error("%s", line)
            return line
        path = root / cell.name / "results.json"
        found = summary(read_json(path, "run it again", schemas.SUMMARY))
        logging.info(
            "%d of %d, %s: %s, %.1f min", next(done), len(waiting), cell.name, found, minutes
        )
        return None

    with ThreadPoolExecutor(jobs) as pool:
        return [line for line in pool.map(run, waiting) if line]


def numbers(name: str, values: Sequence[str]) -> list[int]:
    """Returns the value of a flag as whole numbers.

    Raises:
      ValueError: A value is not a whole number.
    """
    try:
        return [int(value) for value in values]
    except ValueError:
        raise ValueError(
            f"--{name}={','.join(values)}; expected whole numbers, such as 16,32"
        ) from None


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "dataset", None, "Data set, as in configs/{dataset}_{method}.py.", flag_values=values
    )
    flags.DEFINE_list(
        "methods", [], "Methods, separated by commas; all by default.", flag_values=values
    )
    flags.DEFINE_list("bits", ["16", "32", "64"], "Code lengths.", flag_values=values)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.", flag_values=values)
    flags.DEFINE_string(
        "root", None, "Folder of the grid; runs/{dataset} by default.", flag_values=values
    )
    flags.DEFINE_integer(
        "jobs", 1, "Number of runs at the same time, among which the cores are divided.",
        lower_bound=1, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list(
        "gpus", [], "Numbers of the GPUs; each job gets one in turn.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "set", [], "Change of the config in all cells, as field=value.", flag_values=values
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the cells that are not done yet, and prints how many are done and which failed."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(options, dataset="a name, such as coco18")
    for change in options.set:
        if "=" not in change:
            raise ValueError(
                f"--set={change}; expected field=value, such as --set=base.num_epochs=30"
            )
    grid = cells(
        options.dataset,
        options.methods or all_methods(),
        numbers("bits", options.bits),
        numbers("seeds", options.seeds),
    )
    root = Path(options.root or Path("runs") / options.dataset)
    claim(root, {"dataset": options.dataset, "set": sorted(options.set)})
    failed = run_grid(grid, root, options.set, options.jobs, options.gpus)
    command.show(f"{len(grid) - len(failed)} of {len(grid)} runs of {root} are done")
    if failed:
        command.show("failed; rerun the same command to try them again:", *failed)
    return 1 if failed else 0


if __name__ == "__main__":
    command.run(main)
