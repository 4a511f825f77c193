"""Prints README's table of the demo, means and spread over runs, and records the runs' measures.

python launch/demo_table.py --runs=runs/demo_seeds/0,runs/demo_seeds/1 --out=bench/results/demo.json
python launch/demo_table.py                       # prints the table of the recorded runs
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "bench" / "results" / "demo.json"
ROWS = {
    "base": "base: one code per photo",
    "mch": "**MCH: the agent chooses**",
    "random": "random: as many codes, drawn at random",
    "always": "all six codes",
    "oracle": "oracle: regions with a positive true reward",
}
DECIMALS = {"anhc": 2, "map": 3, "p_at_h0": 3, "r_at_h0": 4}
WIDTH = 3  # half the interval of README, in standard deviations


def measures(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns the measures of README's table from what results.json of a run holds."""
    found = {"base": results["base"], "mch": results["mch"], **results["controls"]}
    return {row: {name: found[row][name] for name in DECIMALS} for row in ROWS}


def interval(runs: list[dict[str, Any]], row: str, name: str) -> tuple[float, float]:
    """Returns the mean of a measure over runs, and half its interval: WIDTH standard deviations."""
    values = [run[row][name] for run in runs]
    return statistics.mean(values), WIDTH * statistics.stdev(values)


def text(number: float, decimals: int) -> str:
    """Returns a number in decimals, without the zero before the point."""
    return f"{number:.{decimals}f}".removeprefix("0") if decimals > 2 else f"{number:.{decimals}f}"


def table(runs: list[dict[str, Any]]) -> str:
    """Returns README's table: means and standard deviations over the runs of all seeds."""
    lines = ["| codes | codes per image | mAP | P@H=0 | R@H=0 |", "| --- | --- | --- | --- | --- |"]
    for row, title in ROWS.items():
        cells = []
        for name, decimals in DECIMALS.items():
            mean, half = interval(runs, row, name)
            spread = f" ± {text(half / WIDTH, decimals)}" if half else ""
            cells.append(text(mean, decimals) + spread)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Records the runs if some are given, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.runs:
        paths = [Path(path) / "results.json" for path in options.runs.split(",")]
        found = [json.loads(path.read_text()) for path in paths]
        runs = [{"seed": one["seed"], **measures(one)} for one in found]
        if options.out:
            recorded = {"device": found[0]["provenance"]["device"], "cores": 2, "runs": runs}
            options.out.write_text(json.dumps(recorded, indent=1) + "\n")
    else:
        runs = json.loads(FILE.read_text())["runs"]
    print(table(runs))


if __name__ == "__main__":
    main()
