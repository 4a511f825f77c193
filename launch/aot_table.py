"""Prints the tables of docs/accelerators.md from the rows that aot_check.py wrote.

python launch/aot_table.py [bench/results/aot.json]
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[1] / "bench" / "results" / "aot.json"
Row = Mapping[str, Any]


def number(value: float | None, scale: float, digits: int) -> str:
    """Returns a scaled number, or a dash for None."""
    return "–" if value is None else f"{value / scale:,.{digits}f}"


def collectives(row: Row) -> str:
    """Returns the collectives of a program with their kilobytes, such as `1 all-gather (69 kB)`."""
    sizes: dict[str, int] = {}
    for moved in row["moved"] or []:
        sizes[moved["name"]] = sizes.get(moved["name"], 0) + moved["bytes"]
    found = [
        f"{count} {name} ({sizes[name] / 1e3:,.0f} kB)"
        for name, count in (row["collectives"] or {}).items()
        if count
    ]
    return ", ".join(found) or ("–" if row["moved"] is None else "none")


def products(row: Row) -> str:
    """Returns the products of a program by the types of their factors, the most frequent first."""
    found = sorted((row["products"] or {}).items(), key=lambda item: -item[1])
    texts = (f"{count} {kind.partition('->')[0].replace(',', ' x ')}" for kind, count in found)
    return ", ".join(texts) or ("–" if row["products"] is None else "none")


def table(names: str, align: str, lines: list[str]) -> str:
    """Returns a table in Markdown."""
    return "\n".join([names, align, *lines, ""])


def main() -> None:
    """Prints the tables."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULT
    rows: list[Row] = json.loads(path.read_text())
    first = [
        f"| {row['target']} | `{row['program']}` | {number(row['seconds'], 1, 1)} | "
        + " | ".join(number(row[f"{name}_bytes"], 1e6, 1) for name in ("temp", "argument", "peak"))
        + f" | {number(row['flops'], 1e9, 2)} | {number(row['bytes'], 1e9, 2)} | "
        f"{number(row['compute_seconds'], 1e-3, 3)} | {number(row['memory_seconds'], 1e-3, 3)} |"
        if row["ok"]
        else f"| {row['target']} | `{row['program']}` | {row['error']}" + " | –" * 7 + " |"
        for row in rows
    ]
    names = (
        "| target | program | compiled in (s) | temporary (MB) | arguments (MB) | peak (MB) "
        "| GFLOP | GB moved | compute (ms) | memory (ms) |"
    )
    print(table(names, "| --- | --- |" + " ---: |" * 8, first))
    second = [
        f"| {row['target']} | `{row['program']}` | {collectives(row)} "
        f"| {number(row['copies'], 1, 0)} | {number(row['scatters'], 1, 0)} | {products(row)} |"
        for row in rows
        if row["ok"]
    ]
    names = "| target | program | collectives | copies | scatters | products |"
    print(table(names, "| --- | --- | --- | ---: | ---: | --- |", second))
    third = [
        f"| {row['target']} | `{row['program']}` | {number(row['temp_bytes'], 1e6, 0)} | "
        f"{number(row['state_bytes'], 1e6, 0)} | {number(row['activation_bytes'], 1e6, 0)} | "
        f"{number(2 * row['state_bytes'] + row['activation_bytes'], 1e6, 0)} |"
        for row in rows
        if row["ok"] and row["state_bytes"]
    ]
    names = "| target | program | temporary (MB) | state (MB) | activations (MB) | bound (MB) |"
    print(table(names, "| --- | --- |" + " ---: |" * 4, third))
    for text in sorted({json.dumps(row["versions"]) for row in rows if row["ok"]}):
        print(text)


if __name__ == "__main__":
    main()
