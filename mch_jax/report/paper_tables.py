"""The paper's tables, as Markdown, and figures from the runs of a grid."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from mch_jax import methods
from mch_jax.evaluation import comparison, sweep
from mch_jax.evaluation.comparison import Estimate, Results, Runs, estimate
from mch_jax.evaluation.measures import MEASURE, ORACLES, costs
from mch_jax.files import whole_file
from mch_jax.report import paper_figures
from mch_jax.report.paper_figures import method_title

DIFFERENCES = ("map", "p_at_h0", "r_at_h0")  # the measures that differences are taken in


def cell(value: Estimate, digits: int, signed: bool = False) -> str:
    """Returns an estimate as a table shows it.

    Args:
      value: The estimate.
      digits: Decimals.
      signed: True to show the sign of a positive number.
    """
    if np.isnan(value.mean):
        return "–"
    sign = "+" if signed else ""
    text = f"{value.mean:{sign}.{digits}f}"
    return text if value.count == 1 else f"{text} ± {value.half:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure_table(runs: Runs, key: str) -> str:
    """Returns a measure of every method without and with MCH, by code length: Table 2 for mAP."""
    lengths, rows = comparison.code_lengths(runs), []
    for method in comparison.method_names(runs):
        for kind in ("base", "mch") if method in methods.OBJECTIVES else ("base",):
            title = method_title(method, kind)
            row = [title if kind == "base" else f"**{title}**"]
            for num_bits in lengths:
                values = [results[kind][key] for results in runs.get((method, num_bits), [])]
                row.append(cell(estimate(values), MEASURE[key].table_digits) if values else "–")
            rows.append(row)
    return table(["", *(f"{num_bits} bits" for num_bits in lengths)], rows)


def difference_table(runs: Runs, control: str) -> str:
    """Returns MCH minus a control for every method and code length.

    Args:
      runs: Runs of methods with an agent.
      control: Key of the control. For `never`, the base model, the table also has the number of
        codes and the share of each oracle's gain.
    """
    rows = []
    oracles = [
        oracle
        for oracle in ORACLES
        if all(oracle in one["controls"] for found in runs.values() for one in found)
    ]
    for (method, num_bits), found in runs.items():
        values = [
            cell(comparison.difference(found, key, control), MEASURE[key].table_digits, signed=True)
            for key in DIFFERENCES
        ]
        row = [method_title(method), str(num_bits), str(len(found)), *values]
        if control == "never":
            anhc = estimate([results["mch"]["anhc"] for results in found])
            row += [cell(anhc, MEASURE["anhc"].table_digits)]
            row += [cell(comparison.oracle_share(found, oracle=oracle), 2) for oracle in oracles]
        rows.append(row)
    head = ["", "bits", "seeds", *(MEASURE[key].title for key in DIFFERENCES)]
    if control == "never":
        head += [
            "codes per photo",
            *(f"share of {ORACLES[oracle]}'s mAP gain" for oracle in oracles),
        ]
    return table(head, rows)


def bucket_table(runs: Runs) -> str:
    """Returns how many times fewer buckets MCH visits at equal F1, for runs with an agent."""
    found_costs = costs(_first(runs)) if runs else ()
    rows = []
    for (method, num_bits), found in runs.items():
        ratios = (comparison.bucket_ratios(found, cost.key) for cost in found_costs)
        values = [f"{ratio:.3g}" for of_cost in ratios for ratio in of_cost]
        rows.append([method_title(method), str(num_bits), str(len(found)), *values])
    levels = [f"{level:.0%}" for level in comparison.LEVELS]
    names = [f"{cost.name}, {level}" for cost in found_costs for level in levels]
    return table(["", "bits", "seeds", *names], rows)


def _first(runs: Runs) -> Results:
    return next(iter(runs.values()))[0]


def read_sweeps(runs: Runs) -> dict[str, list[Results]]:
    """Returns the rows of sweep.json of every run that has been swept, by the run's title."""
    found = {}
    for (method, num_bits), several in runs.items():
        for results in several:
            rows = sweep.read_rows(Path(results["workdir"]))
            if rows:
                title = f"{method_title(method)}, {num_bits} bits, seed {results['seed']}"
                found[title] = rows
    return found


def sweep_table(rows: Sequence[Results], key: str) -> str:
    """Returns a measure by crop ratio sigma and keep threshold xi: Table 3 for ANHC."""
    ratios, thresholds = (
        sorted({row[name] for row in rows}) for name in ("crop_ratio", "keep_threshold")
    )
    values = {(row["crop_ratio"], row["keep_threshold"]): row[key] for row in rows}
    digits = MEASURE[key].table_digits
    lines = [
        [f"σ = {ratio:g}", *(f"{values[ratio, threshold]:.{digits}f}" for threshold in thresholds)]
        for ratio in ratios
    ]
    return table(["", *(f"ξ = {threshold:g}" for threshold in thresholds)], lines)


def markdown(runs: Runs) -> str:
    """Returns every table."""
    learned = comparison.with_agent(runs)
    first = _first(runs)
    counts = first["dataset"]
    parts = [
        f"# {counts['name']}\n\n{counts['queries']:,} queries, {counts['database']:,} photos in "
        f"the database, {counts['train']:,} of them for training; chance mAP "
        f"{first['chance_map']:.3f}. "
        "Means over seeds with 95 % intervals; a single seed has none.",
        "## mAP of the whole ranking (Table 2)\n\n" + measure_table(runs, "map"),
        "## Precision within radius 0 (Figure 4)\n\n" + measure_table(runs, "p_at_h0"),
        "## Recall within radius 0 (Figure 3)\n\n" + measure_table(runs, "r_at_h0"),
        "## MCH minus base, paired by seed\n\n" + difference_table(learned, "never"),
        "## MCH minus as many codes at random, paired by seed\n\n"
        + difference_table(learned, "random"),
        "## Buckets at equal F1, base over MCH\n\nAbove 1, MCH looks into fewer buckets. The F1 "
        "are shares of the smaller of the two best F1.\n\n" + bucket_table(learned),
    ]
    for title, rows in read_sweeps(runs).items():
        parts.append(
            f"## Codes per photo by σ and ξ (Table 3): {title}\n\n" + sweep_table(rows, "anhc")
        )
        parts.append(f"## mAP by σ and ξ (Figure 9): {title}\n\n" + sweep_table(rows, "map"))
    return "\n\n".join(parts) + "\n"


def write(root: Path, out: Path) -> list[Path]:
    """Writes the tables and figures of a grid's runs and returns their paths, the tables first.

    Args:
      root: Directory of the workdirs of the grid.
      out: Directory to write to.

    Raises:
      ValueError: There is no finished run.
    """
    runs = comparison.read_runs(root)
    out.mkdir(parents=True, exist_ok=True)
    text = out / "tables.md"
    with whole_file(text) as temporary:
        temporary.write_text(markdown(runs), "utf-8")
    learned = comparison.with_agent(runs)
    if not learned:
        return [text]
    written = [text]

    def target(name: str) -> Path:
        written.append(out / name)
        return written[-1]

    for key, name in (("r_at_h0", "recall.png"), ("p_at_h0", "precision.png")):
        paper_figures.radius_figure(learned, key, target(name))
    for num_bits in comparison.code_lengths(learned):
        paper_figures.f1_figure(learned, num_bits, target(f"f1-{num_bits}.png"))
    shown = next((found for (method, _), found in learned.items() if method == "dch"), None)
    try:
        results = shown[0] if shown else _first(learned)
        paper_figures.gallery_figure(results, out / "gallery.png")
        written.append(out / "gallery.png")
    except ValueError as error:
        logging.warning("no gallery, since the photos of the run cannot be read: %s", error)
    sweeps = read_sweeps(runs)
    if sweeps:
        paper_figures.sensitivity_figure(sweeps, target("sensitivity.png"))
    return written
