"""Prints the tables of RESULTS.md on rivals at equal cost, from runs that mch_jax.rivals measured.

    python -m mch_jax.rivals --run=runs/coco18/coco18_dch_32_0   # for each run
    python launch/fair_fight.py --root=runs/coco18

Differences are paired. Over several seeds, the interval is Student's at 95 %; for a single seed, it
is a bootstrap interval over the queries, which says nothing about other seeds.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mch_jax import command
from mch_jax.evaluation import rival_table
from mch_jax.evaluation.comparison import Estimate, estimate
from mch_jax.files import read_json, read_npz

DIFFERENCES = (
    ("base_gqr", "mch_hamming"),
    ("mch_gqr", "base_gqr"),
    ("mch_gqr_agent_query", "base_gqr"),
    ("mch_gqr_all_query", "base_gqr"),
    ("mch_gqr_all_query", "base_gqr_all_query"),
    ("mch_gqr", "spill_gqr"),
    ("mch_gqr", "random_gqr"),
    ("mch_gqr", "surest_gqr"),
    ("mch_gqr", "expected_gqr"),
    ("mch_gqr", "long_gqr"),
)
READ = (600, 800, 1000, 1200)  # codes read, at which F1 is interpolated
DRAWS = 2000


class Compared(NamedTuple):
    """A run that mch_jax.rivals has measured.

    Attributes:
      seed: Seed of the run.
      rows: The rows of rivals.json.
      by_query: F1 of each row, budget and query, by `{row}/f1`.
      budget: Numbers of buckets.
    """

    seed: int
    rows: Mapping[str, Mapping[str, Any]]
    by_query: Mapping[str, np.ndarray]
    budget: Sequence[int]


def read(root: Path) -> dict[tuple[str, int], list[Compared]]:
    """Returns the measured runs in a folder by method and number of bits, seeds ascending.

    Raises:
      ValueError: There is none.
    """
    found: dict[tuple[str, int], list[Compared]] = {}
    for path in sorted(root.glob(f"*/{rival_table.FILE}")):
        config = read_json(path.parent / "config.json", "start the run again")
        table = read_json(path, "run mch_jax.rivals again")
        arrays = read_npz(path.parent / rival_table.ARRAYS, "run mch_jax.rivals again")
        one = Compared(config["seed"], table["rows"], arrays, table["budget"])
        found.setdefault((config["method"], config["num_bits"]), []).append(one)
    if not found:
        raise ValueError(f"--root={root} holds no {rival_table.FILE}; run mch_jax.rivals first")
    for runs in found.values():
        runs.sort(key=lambda one: one.seed)
    return found


def difference(runs: Sequence[Compared], row: str, other: str, budget: int) -> Estimate:
    """Returns the paired difference in F1 of two rows at the budget with this position."""
    means = [run.rows[row]["f1"][budget] - run.rows[other]["f1"][budget] for run in runs]
    if len(runs) > 1:
        return estimate(means)
    by_query = runs[0].by_query
    paired = by_query[f"{row}/f1"][budget] - by_query[f"{other}/f1"][budget]
    rng = np.random.default_rng(0)
    drawn = paired[rng.integers(len(paired), size=(DRAWS, len(paired)))].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(means[0], float(high - low) / 2, 1)


def cell(value: Estimate) -> str:
    """Returns a difference with half its interval, such as `+.0266 ± .0041`."""
    return f"{value.mean:+.4f} ± {value.half:.4f}".replace("0.", ".")


def number(value: float) -> str:
    """Returns a fraction with four decimals and without the zero before the point."""
    return f"{value:.4f}".removeprefix("0")


def at_read(row: Mapping[str, Any], candidates: int) -> float:
    """Returns F1 after so many codes read, linear between budgets; NaN outside their range."""
    cost = row["candidates"]
    if not cost[0] <= candidates <= cost[-1]:
        return float("nan")
    return float(np.interp(candidates, cost, row["f1"]))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rivals_table(runs: Sequence[Compared]) -> str:
    """Returns F1 at each budget, codes read, mAP, codes and bytes of every row."""
    budgets = runs[0].budget
    at = budgets.index(33)
    lines = []
    for name in runs[0].rows:
        rows = [run.rows[name] for run in runs if name in run.rows]
        f1 = np.mean([row["f1"] for row in rows], 0)
        mean = {
            key: float(np.mean([row[key] for row in rows]))
            for key in ("map", "codes_per_image", "bytes_per_image")
        }
        recall = np.mean([row["recall"][at] for row in rows])
        read = np.mean([row["candidates"][at] for row in rows])
        costs = [f"{mean['codes_per_image']:.2f}", f"{mean['bytes_per_image']:.1f}"]
        lines.append(
            [f"`{name}`", *map(number, f1), number(float(recall)), f"{read:,.0f}"]
            + [number(mean["map"]), *costs]
        )
    head = ["", *(f"F1, {x}" for x in budgets), "recall, 33", "read, 33", "mAP", "codes", "bytes"]
    return table(head, lines)


def difference_table(runs: Sequence[Compared]) -> str:
    """Returns the paired differences in F1 at each budget, from the runs that have both rows."""
    lines = []
    for row, other in DIFFERENCES:
        both = [run for run in runs if row in run.rows and other in run.rows]
        if both:
            title = f"`{row}` minus `{other}`"
            title += f" (n = {len(both)})" if len(both) < len(runs) else ""
            differences = [difference(both, row, other, i) for i in range(len(runs[0].budget))]
            lines.append([title, *map(cell, differences)])
    return table(["", *map(str, runs[0].budget)], lines)


def read_table(runs: Sequence[Compared]) -> str:
    """Returns F1 at equal numbers of codes read."""
    lines = []
    for name in runs[0].rows:
        if name not in ("classifier", "everything") and all(name in run.rows for run in runs):
            means = [np.mean([at_read(run.rows[name], x) for run in runs]) for x in READ]
            lines.append([f"`{name}`", *("" if np.isnan(x) else number(float(x)) for x in means)])
    return table(["", *(f"{x:,}" for x in READ)], lines)


def markdown(root: Path) -> str:
    """Returns every table for the runs in a folder."""
    parts = []
    for (method, num_bits), runs in read(root).items():
        seeds = ", ".join(str(run.seed) for run in runs)
        parts += [
            f"## {method}, {num_bits} bits, n = {len(runs)} (seeds {seeds})",
            "F1 after 1, 8, 33 and 132 buckets:",
            rivals_table(runs),
            "Paired differences in F1:",
            difference_table(runs),
            "F1 at equal numbers of codes read, between budgets; empty outside their range:",
            read_table(runs),
        ]
    return "\n\n".join(parts)


def main(arguments: Sequence[str]) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of the runs")
    print(markdown(parser.parse_args(arguments).root))  # noqa: T201
    return 0


if __name__ == "__main__":
    command.run(main)
