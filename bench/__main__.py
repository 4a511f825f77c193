"""Runs benchmarks and writes their results as JSON, Markdown, PNG and a line of history.

python -m bench [--only=forward,train,...] [--threads=1,2] [--quick] [--out=bench/results]

Each benchmark runs in a process of its own with the given number of cores, and alternates with its
peer. Rows of benchmarks that do not run keep their previous values. With --quick the inputs are
small, nothing is written unless --out is given, and the exit status is 1 if a ratio is far below
its target; this checks that nothing is broken and is no measurement. If a benchmark lacks a package
or a device, its row says so.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mch_jax.machine import cores as usable_cores

RESULTS = Path(__file__).parent / "results"
BENCHES = {
    "forward": "networks", "train": "networks", "cached_step": "networks", "reward": "agents",
    "agent_photos": "agents", "agent_cached": "agents", "encoding": "encoding",
    "reading": "encoding", "evaluator": "retrieval", "average_precision": "retrieval",
    "whole": "retrieval", "million": "retrieval", "startup": "startup", "scaling": "scaling",
    "index": "bucket_index", "long_codes": "bucket_index",
}  # fmt: skip
# The only number of threads to run.
ONCE = {"million": 1, "startup": 2, "scaling": 2, "index": 1, "long_codes": 1}
QUICK = ("reward", "evaluator", "average_precision", "whole")
FLOORS = {
    "agent's reward": 1.2,
    "evaluator: relevance and distance histogram": 1.0,
    "metrics.histogram, relevance as a matrix": 1.0,
}


def child(name: str, threads: int, quick: bool, out: Path) -> None:
    """Runs one benchmark in this process and writes its rows."""
    cores = usable_cores()[:threads]
    os.sched_setaffinity(0, cores)
    os.environ |= {x: str(threads) for x in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    module = importlib.import_module(f"bench.{BENCHES[name]}")
    rows = [{"key": name, **dataclasses.asdict(row)} for row in getattr(module, name)(quick)]
    from bench import limits

    record = {"rows": rows} if quick else {"rows": rows, "machine": limits.machine()}
    out.write_text(json.dumps(record))


def run(name: str, threads: int, quick: bool) -> dict:
    """Runs one benchmark in another process and returns its rows."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "rows.json"
        command = [sys.executable, "-m", "bench", f"--child={out}", f"--only={name}"]
        command += [f"--threads={threads}", *(["--quick"] if quick else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            text = (done.stderr.strip() or "no message").splitlines()[-1]
            print(f"{name}, {threads} threads: FAILED: {text}", file=sys.stderr)
            return {"rows": [], "failed": text}
        return json.loads(out.read_text())


def number(value: float | None, form: str = ",.3g") -> str:
    """Returns a number as text for the table; an empty string for None."""
    return "" if value is None else format(value, form)


def markdown(record: dict) -> str:
    """Returns the table of results as Markdown."""
    lines = ["# Speed and memory", ""]
    for threads, machine in sorted(record["machines"].items()):
        versions = ", ".join(f"{x} {machine[x]}" for x in ("jax", "numpy", "torch", "faiss"))
        lines += [
            f"- {threads} thread{'s' * (threads != '1')} of {machine['processor']}: "
            f"{machine['gflops']:,.0f} GFLOP/s float32, {machine['read_gb_s']:.0f} GB/s read, "
            f"{machine['popcounts_g_s']:.1f} G popcounts/s. {versions}.",
        ]
    lines += [
        "",
        "Rates are medians of wall-clock time, with the slowest and fastest round in brackets. The "
        "ratio to the peer, which alternates with ours, uses CPU time on one thread and wall-clock "
        "time on two. Limits are measured in the same process. `python -m bench` makes this table.",
        "",
        "| bench | threads | rate | peer, its rate | ratio | target | limit, share | MB, peer's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes = []
    for row in record["rows"]:
        peer = f"{row['peer']}, {number(row['peer_rate'])}" if row["peer_rate"] else row["peer"]
        target = row["target"] + {True: " met", False: " **missed**", None: ""}[row["met"]]
        limit = f"{row['limit']}, {row['share']:.0%}" if row["limit"] else ""
        memory = number(row["memory_mb"], ",.1f")
        if row["peer_memory_mb"] is not None:
            memory += f", {number(row['peer_memory_mb'], ',.1f')}"
        load = row.get("load", 0)
        busy = f" (machine busy: load {load:.0f})" if load > row["threads"] + 2 else ""
        notes.append(f"- {row['bench']} ({row['threads']}){busy}: {row['note']}")
        lines.append(
            f"| {row['bench']} | {row['threads']} | {number(row['rate'])} {row['unit']} "
            f"({number(row['low'])}-{number(row['high'])}) | {peer} "
            f"| {number(row['ratio'], '.2f')} | {target} | {limit} | {memory} |"
        )
    remarks = [f"- {key}: {text}" for key, text in record.get("remarks", {}).items()]
    lines += ["", *filter(None, dict.fromkeys(notes))]
    if remarks:
        lines += ["", "## Remarks", "", *remarks]
    return "\n".join([*lines, ""])


def figure(record: dict, path: Path) -> None:
    """Draws the ratios to the peers, with their targets."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    rows = [row for row in record["rows"] if row["ratio"]][::-1]
    plot, axes = plt.subplots(figsize=(10, 1 + 0.36 * len(rows)), layout="constrained")
    names = [f"{row['bench']}, {row['threads']} thread{'s' * (row['threads'] > 1)}" for row in rows]
    colours = {True: "#2a7f62", False: "#c1440e", None: "#5b6c8f"}
    axes.barh(names, [row["ratio"] for row in rows], color=[colours[row["met"]] for row in rows])
    for y, row in enumerate(rows):
        axes.text(row["ratio"] * 1.05, y, f"{row['ratio']:.2f} x {row['peer']}", va="center",
                  fontsize=8)  # fmt: skip
        if row["target"].startswith(">=") and row["target"].endswith(" x"):
            least = float(row["target"][3:-2])
            axes.plot([least] * 2, [y - 0.4, y + 0.4], color="black", linewidth=2)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.margins(y=0.01)
    axes.set_xlim(right=max([row["ratio"] for row in rows], default=1) * 12)
    axes.set_xlabel(
        "speed relative to the peer; black: target; green: met, red: missed, blue: no target"
    )
    plot.savefig(path, dpi=150)
    plt.close(plot)


def merge(out: Path, records: list[dict]) -> dict:
    """Returns the stored results, with new rows in place of those of the same benchmarks."""
    path = out / "bench.json"
    old = json.loads(path.read_text()) if path.exists() else {"rows": [], "machines": {}}
    rows = [row for record in records for row in record["rows"]]
    again = {(row["key"], row["threads"]) for row in rows}
    rows += [row for row in old["rows"] if (row["key"], row["threads"]) not in again]
    order = list(BENCHES)
    rows.sort(key=lambda row: (order.index(row["key"]), row["threads"]))
    machines = dict(old["machines"])
    for record in records:
        if "machine" in record:
            machines[str(record["machine"]["threads"])] = record["machine"]
    return {**old, "machines": machines, "rows": rows}


def remember(path: Path, rows: list[dict]) -> None:
    """Appends a line to the history, in which regressions can be seen."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    rates = {f"{row['bench']}, {row['threads']}": [row["rate"], row["ratio"]] for row in rows}
    line = {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "rate_and_ratio": rates,
    }
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def main() -> int:
    """Runs the benchmarks that the arguments name; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--only", help=f"benchmarks to run: {', '.join(BENCHES)}")
    parser.add_argument("--threads", default="1,2", help="numbers of cores; default: 1,2")
    parser.add_argument(
        "--quick", action="store_true", help="small inputs, only to check that nothing is broken"
    )
    parser.add_argument("--out", type=Path, help="directory for the results")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = (arguments.only or ",".join(QUICK if arguments.quick else BENCHES)).split(",")
    unknown = [name for name in names if name not in BENCHES]
    threads = [int(x) for x in arguments.threads.split(",") if x.isdigit()]
    if unknown or not threads:
        what = f"--only={unknown[0]}" if unknown else f"--threads={arguments.threads}"
        expected = f"one of {', '.join(BENCHES)}" if unknown else "numbers of cores, such as 1,2"
        print(f"error: {what}; expected {expected}", file=sys.stderr)
        return 2
    if arguments.child:
        child(names[0], threads[0], arguments.quick, arguments.child)
        return 0
    cores = len(usable_cores())
    records = []
    for name in names:
        for count in [ONCE[name]] if name in ONCE else threads:
            print(f"{name}, {min(count, cores)} of {cores} cores", file=sys.stderr)
            records.append(run(name, min(count, cores), arguments.quick))
    rows = [row for record in records for row in record["rows"]]
    out = arguments.out or RESULTS
    if not arguments.quick or arguments.out:
        out.mkdir(parents=True, exist_ok=True)
        record = merge(out, records)
        (out / "bench.json").write_text(json.dumps(record, indent=1) + "\n")
        (out / "bench.md").write_text(markdown(record))
        figure(record, out / "bench.png")
        if not arguments.quick:
            remember(out / "history.jsonl", rows)
    print(markdown({"machines": {}, "rows": rows}))
    slow = [row for row in rows if row["ratio"] and row["ratio"] < FLOORS.get(row["bench"], 0)]
    for row in slow if arguments.quick else []:
        print(f"error: {row['bench']}: {row['ratio']:.2f} times its peer", file=sys.stderr)
    return 1 if any("failed" in x for x in records) or (arguments.quick and slow) else 0


if __name__ == "__main__":
    sys.exit(main())
