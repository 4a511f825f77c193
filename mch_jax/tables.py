"""Turns the runs of a grid into the tables and figures of the paper.

python -m mch_jax.tables --root=runs/coco18

Writes into {root}/tables: tables.md; recall.png and precision.png within radius 0 (the paper's
Figures 3 and 4); f1-{bits}.png, F1 against buckets probed (5 to 7); gallery.png, nearest photos
with both distances (8); sensitivity.png, to sigma and xi (9), of the runs that `sweep` has swept.

Differences are paired by seed: two choices of codes of one run share the base model, the regions
and the queries. Intervals are Student's, 95 %, over seeds; a single seed has none.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter
from PIL import Image
from scipy import stats

from mch_jax import command, methods
from mch_jax.evaluation import evaluate, sweep
from mch_jax.files import checkpoint
from mch_jax.report import page as report
from mch_jax.training import run

SCHEME = report.SCHEMES[0]
LINES = (("base", SCHEME.base, "--", "s"), ("mch", SCHEME.mch, "-", "o"))
LEVELS = (0.25, 0.5, 0.75, 0.95)  # of the smaller of two best F1

Runs = Mapping[tuple[str, int], list[Mapping[str, Any]]]


class Estimate(NamedTuple):
    """A mean over seeds and half its 95 % interval, NaN for a single seed."""

    mean: float
    half: float
    count: int


def name(method: str, kind: str = "base") -> str:
    """Returns a method's name as its authors write it, with MCH before it for that kind."""
    text = {"hashnet": "HashNet"}.get(method, method.upper())
    return f"MCH-{text}" if kind == "mch" else text


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean over seeds with Student's 95 % interval."""
    count = len(values)
    half = float("nan")
    if count > 1:
        half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return Estimate(float(np.mean(values)), half, count)


def read_runs(root: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Returns results of the finished runs in a folder, by method and code length, then by seed.

    Raises:
      ValueError: there are none, or they are of several data sets.
    """
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    names = set()
    for path in sorted(root.glob("*/results.json")):
        results = evaluate.read(path.parent)
        results["workdir"] = str(path.parent)
        names.add(results["dataset"]["name"])
        found.setdefault((results["method"], results["num_bits"]), []).append(results)
    if not found:
        raise ValueError(f"--root={root} holds no finished run; run mch_jax.grid first")
    if len(names) > 1:
        raise ValueError(
            f"--root={root} holds runs of {', '.join(sorted(names))}; expected one data set"
        )
    for runs in found.values():
        runs.sort(key=lambda results: results["seed"])
    order = {method: place for place, method in enumerate(methods.METHODS)}
    return dict(sorted(found.items(), key=lambda entry: (order[entry[0][0]], entry[0][1])))


def _lengths(runs: Runs) -> list[int]:
    return sorted({num_bits for _, num_bits in runs})


def _methods(runs: Runs) -> list[str]:
    return list(dict.fromkeys(method for method, _ in runs))


def _with_agent(runs: Runs) -> Runs:
    """Returns the runs whose methods have an agent; LSH and ITQ have none."""
    return {key: found for key, found in runs.items() if key[0] in methods.OBJECTIVES}


def cell(value: Estimate, digits: int, signed: bool = False) -> str:
    """Returns an estimate as a table shows it."""
    if np.isnan(value.mean):
        return "–"
    sign = "+" if signed else ""
    text = f"{value.mean:{sign}.{digits}f}"
    return text if value.count == 1 else f"{text} ± {value.half:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure_table(runs: Runs, key: str, digits: int) -> str:
    """Returns a measure of every method without and with MCH, by code length: Table 2 for mAP."""
    lengths, rows = _lengths(runs), []
    for method in _methods(runs):
        for kind in ("base", "mch") if method in methods.OBJECTIVES else ("base",):
            title = name(method, kind) if kind == "base" else f"**{name(method, kind)}**"
            values = [runs.get((method, num_bits), []) for num_bits in lengths]
            rows.append(
                [title]
                + [cell(estimate([r[kind][key] for r in v]), digits) if v else "–" for v in values]
            )
    return table(["", *(f"{num_bits} bits" for num_bits in lengths)], rows)


def difference(runs: Sequence[Mapping[str, Any]], key: str, control: str) -> Estimate:
    """Returns MCH minus a control in one measure, paired by seed."""
    return estimate([results["mch"][key] - results["controls"][control][key] for results in runs])


def oracle_share(runs: Sequence[Mapping[str, Any]]) -> Estimate:
    """Returns the share of the oracle's gain in mAP over the base that the agent gets.

    NaN where the oracle gains nothing.
    """
    shares = []
    for results in runs:
        base, oracle = results["base"]["map"], results["controls"]["oracle"]["map"]
        gain = oracle - base
        shares.append((results["mch"]["map"] - base) / gain if gain > 0 else float("nan"))
    return estimate(shares)


def difference_table(runs: Runs, control: str) -> str:
    """Returns MCH minus a control of every method and code length, of runs with an agent."""
    rows = []
    for (method, num_bits), found in runs.items():
        values = [
            cell(difference(found, key, control), digits, signed=True)
            for key, digits in (("map", 4), ("p_at_h0", 4), ("r_at_h0", 4))
        ]
        row = [name(method), str(num_bits), str(len(found)), *values]
        if control == "never":
            anhc = estimate([results["mch"]["anhc"] for results in found])
            row += [cell(anhc, 2), cell(oracle_share(found), 2)]
        rows.append(row)
    head = ["", "bits", "seeds", "mAP", "P@H=0", "R@H=0"]
    head += ["codes an image", "share of the oracle's mAP gain"] if control == "never" else []
    return table(head, rows)


def buckets_at(curve: Mapping[str, Sequence[int | float]], axis: str, f1: float) -> float:
    """Returns how many buckets a curve looks into to reach an F1, between its points in logarithms.

    Args:
      curve: `f1_bucket` of a run.
      axis: probed or nonempty.
      f1: no larger than the curve's best; below its first point that point's buckets count.
    """
    last = int(np.argmax(curve["f1"])) + 1
    heights = np.maximum.accumulate(curve["f1"][:last])
    logs = np.log(np.maximum(curve[axis][:last], 1))
    return float(np.exp(np.interp(f1, heights, logs)))


def bucket_ratios(runs: Sequence[Mapping[str, Any]], axis: str) -> Float[np.ndarray, " levels"]:
    """Returns buckets of the base over buckets of MCH at equal F1, geometric means over seeds.

    The F1 are LEVELS of the smaller of the two curves' best.
    """
    logs = []
    for results in runs:
        base, mch = results["base"]["f1_bucket"], results["mch"]["f1_bucket"]
        best = min(max(base["f1"]), max(mch["f1"]))
        logs.append(
            [
                np.log(buckets_at(base, axis, level * best) / buckets_at(mch, axis, level * best))
                for level in LEVELS
            ]
        )
    return np.exp(np.mean(logs, axis=0))


def bucket_table(runs: Runs) -> str:
    """Returns how many times fewer buckets MCH looks into at equal F1, of runs with an agent."""
    rows = []
    for (method, num_bits), found in runs.items():
        ratios = (bucket_ratios(found, axis) for axis in ("probed", "nonempty"))
        values = [f"{ratio:.3g}" for axis in ratios for ratio in axis]
        rows.append([name(method), str(num_bits), str(len(found)), *values])
    levels = [f"{level:.0%}" for level in LEVELS]
    head = ["", "bits", "seeds", *(f"probed, {x}" for x in levels)]
    return table([*head, *(f"non-empty, {x}" for x in levels)], rows)


def read_sweeps(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of sweep.json of every run that has one, by the run's title."""
    found = {}
    for (method, num_bits), several in runs.items():
        for results in several:
            path = Path(results["workdir"]) / sweep.FILE
            if path.exists():
                title = f"{name(method)}, {num_bits} bits, seed {results['seed']}"
                found[title] = checkpoint.read_json(path, "run mch_jax.sweep again")["rows"]
    return found


def sweep_table(rows: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
    """Returns a measure over sigma and xi: Table 3 for ANHC."""
    ratios, thresholds = (
        sorted({row[name] for row in rows}) for name in ("crop_ratio", "keep_threshold")
    )
    values = {(row["crop_ratio"], row["keep_threshold"]): row[key] for row in rows}
    lines = [
        [f"σ = {ratio:g}", *(f"{values[ratio, threshold]:.{digits}f}" for threshold in thresholds)]
        for ratio in ratios
    ]
    return table(["", *(f"ξ = {threshold:g}" for threshold in thresholds)], lines)


def markdown(runs: Runs) -> str:
    """Returns every table."""
    learned = _with_agent(runs)
    first = next(iter(runs.values()))[0]
    counts = first["dataset"]
    parts = [
        f"# {counts['name']}\n\n{counts['queries']:,} queries, {counts['database']:,} images in "
        f"the database, {counts['train']:,} of them for training; chance mAP "
        f"{first['chance_map']:.3f}. "
        "Means over seeds with 95 % intervals; one seed has none.",
        "## mAP of the whole ranking (Table 2)\n\n" + measure_table(runs, "map", 4),
        "## Precision within radius 0 (Figure 4)\n\n" + measure_table(runs, "p_at_h0", 4),
        "## Recall within radius 0 (Figure 3)\n\n" + measure_table(runs, "r_at_h0", 4),
        "## MCH minus base, paired by seed\n\n" + difference_table(learned, "never"),
        "## MCH minus as many codes at random, paired by seed\n\n"
        + difference_table(learned, "random"),
        "## Buckets at equal F1, base over MCH\n\nAbove 1, MCH looks into fewer. The F1 are shares "
        "of the smaller of the two best.\n\n" + bucket_table(learned),
    ]
    for title, rows in read_sweeps(runs).items():
        parts.append(
            f"## Codes an image by σ and ξ (Table 3): {title}\n\n" + sweep_table(rows, "anhc", 2)
        )
        parts.append(f"## mAP by σ and ξ (Figure 9): {title}\n\n" + sweep_table(rows, "map", 4))
    return "\n\n".join(parts) + "\n"


def _panels(count: int, width: float = 2.5, height: float = 2.1) -> tuple[Figure, list[Axes]]:
    """Returns a figure of panels in one row or, from five on, two."""
    lines = 1 if count < 5 else 2
    columns = -(-count // lines)
    figure = Figure((width * columns, height * lines), dpi=200, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _finish(axis: Axes) -> None:
    """Styles a panel whose values begin at 0."""
    axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
    report.style(axis, SCHEME)
    report.legend(axis)


def radius_figure(runs: Runs, key: str, title: str, path: Path) -> None:
    """Draws a measure within radius 0 against code length, base and MCH (Figures 3 and 4)."""
    figure, axes = _panels(len(_methods(runs)))
    for axis, method in zip(axes, _methods(runs), strict=True):
        lengths = [num_bits for m, num_bits in runs if m == method]
        for kind, color, dash, marker in LINES:
            values = [estimate([r[kind][key] for r in runs[method, n]]) for n in lengths]
            axis.errorbar(
                lengths,
                [value.mean for value in values],
                np.nan_to_num([value.half for value in values]),
                color=color,
                linestyle=dash,
                marker=marker,
                markersize=4,
                capsize=2,
                label=name(method, kind),
            )
        axis.set(xlabel="bits", ylabel=title, xticks=lengths)
        _finish(axis)
    figure.savefig(path, facecolor="white")


def f1_figure(runs: Runs, num_bits: int, path: Path) -> None:
    """Draws F1 against buckets, first seed of each method at one code length (Figures 5 to 7)."""
    found = {method: several[0] for (method, n), several in runs.items() if n == num_bits}
    figure, axes = _panels(len(found))
    for axis, (method, results) in zip(axes, found.items(), strict=True):
        for kind, color, dash, marker in LINES:
            curve = results[kind]["f1_bucket"]
            axis.plot(
                curve["probed"],
                curve["f1"],
                dash,
                color=color,
                marker=marker,
                markersize=3,
                label=name(method, kind),
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(report.power))
        axis.set(xlabel="buckets probed, empty ones too", ylabel="F1")
        _finish(axis)
    figure.savefig(path, facecolor="white")


def sensitivity_figure(sweeps: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draws mAP and codes an image against the threshold, a line a side ratio (Figure 9)."""
    figure, axes = _panels(2 * len(sweeps), 3.2, 2.5)
    for place, (title, rows) in enumerate(sweeps.items()):
        ratios = sorted({row["crop_ratio"] for row in rows})
        for axis, key, label in zip(
            axes[2 * place : 2 * place + 2], ("map", "anhc"), ("mAP", "codes an image"), strict=True
        ):
            for number, ratio in enumerate(ratios):
                line = sorted(
                    (row["keep_threshold"], row[key]) for row in rows if row["crop_ratio"] == ratio
                )
                shade = 0.25 + 0.75 * number / max(len(ratios) - 1, 1)
                axis.plot(
                    *zip(*line, strict=True),
                    color=SCHEME.mch,
                    alpha=shade,
                    marker="os^Dv"[number % 5],
                    markersize=4,
                    label=f"σ = {ratio:g}",
                )
            axis.set(xlabel="keep threshold ξ", ylabel=label)
            axis.set_title(title, fontsize=8.5, color=SCHEME.ink)
            report.style(axis, SCHEME)
            axis.legend(frameon=False, fontsize=7.5)
    figure.savefig(path, facecolor="white")


def gallery_figure(results: Mapping[str, Any], path: Path, num_rows: int = 4) -> None:
    """Draws nearest photos under MCH with their distance by the base and by MCH (Figure 8).

    The queries are those of the run's report where MCH gains most. A frame is green round a
    relevant photo, orange round another; a box marks the region whose code was hit.

    Raises:
      ValueError: the run's photos cannot be read.
    """
    workdir = Path(results["workdir"])
    files = report.read(workdir)
    dataset = run.read_dataset(files.config)
    rows = {str(name): row for row, name in enumerate(dataset.ids)}
    picks = report.pick_queries(files)[:num_rows]
    database = files.database
    starts = np.searchsorted(database.item, np.arange(len(database.ids)))
    columns = 1 + len(picks[0].mch.item)
    figure = Figure((1.15 * columns, 1.5 * len(picks)), dpi=160, layout="constrained")
    grid = figure.subplots(len(picks), columns, squeeze=False)
    for line, pick in zip(grid, picks, strict=True):
        query = files.query.codes[pick.query]
        _photo(line[0], dataset.read(rows[str(files.query.ids[pick.query])]), SCHEME.ink)
        line[0].set_xlabel("query", fontsize=7.5, color=SCHEME.ink)
        shared = report.relevant(files, pick.query, pick.mch.item)
        hits = zip(line[1:], *pick.mch, shared, strict=True)
        for axes, item, distance, code, relevant in hits:
            color = "#2e7d4f" if relevant else SCHEME.bad
            _photo(axes, dataset.read(rows[str(database.ids[item])]), color)
            if code != starts[item]:
                left, top, right, bottom = database.box[code].tolist()
                inset = (right - left) * 0.03  # clear of the photo's own frame
                left, top, right, bottom = left + inset, top + inset, right - inset, bottom - inset
                axes.add_patch(
                    Rectangle(
                        (left, top), right - left, bottom - top, fill=False, ec="gold", lw=1.8
                    )
                )
            whole = int(np.bitwise_count(database.codes[starts[item]] ^ query).sum())
            mark = "✓" if relevant else "✕"
            axes.set_xlabel(f"{mark}  base {whole}, MCH {distance}", fontsize=6.5, color=color)
    figure.savefig(path, facecolor="white")


def _photo(axes: Axes, photo: np.ndarray, color: str) -> None:
    """Draws a photo in a coloured frame."""
    small = Image.fromarray(photo)
    width, height = small.size
    small.thumbnail((320, 320), Image.Resampling.LANCZOS)
    axes.imshow(np.asarray(small), extent=(0, width, height, 0))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=1.6)


def write(root: Path, out: Path) -> list[Path]:
    """Writes the tables and figures of a grid's runs and returns their paths.

    Raises:
      ValueError: there is no finished run.
    """
    runs = read_runs(root)
    out.mkdir(parents=True, exist_ok=True)
    text = out / "tables.md"
    with checkpoint.whole_file(text) as temporary:
        temporary.write_text(markdown(runs), "utf-8")
    learned = _with_agent(runs)
    if not learned:
        return [text]
    written = [text]

    def target(name: str) -> Path:
        written.append(out / name)
        return written[-1]

    radius_figure(learned, "r_at_h0", "R@H=0", target("recall.png"))
    radius_figure(learned, "p_at_h0", "P@H=0", target("precision.png"))
    for num_bits in _lengths(learned):
        f1_figure(learned, num_bits, target(f"f1-{num_bits}.png"))
    shown = next((v for (m, _), v in learned.items() if m == "dch"), next(iter(learned.values())))
    try:
        gallery_figure(shown[0], out / "gallery.png")
        written.append(out / "gallery.png")
    except ValueError as error:
        logging.warning("no gallery, since the photos of the run cannot be read: %s", error)
    sweeps = read_sweeps(runs)
    if sweeps:
        sensitivity_figure(sweeps, target("sensitivity.png"))
    return written


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "root", None, "Folder of the runs, as given to mch_jax.grid.", flag_values=values
    )
    flags.DEFINE_string(
        "out", None, "Folder to write to; {root}/tables by default.", flag_values=values
    )


def main(arguments: Sequence[str]) -> None:
    """Writes the tables and figures, and prints the tables."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(options, root="the folder of a grid's runs")
    root = Path(options.root)
    written = write(root, Path(options.out) if options.out else root / "tables")
    print(written[0].read_text("utf-8"), *written, sep="\n")  # noqa: T201


if __name__ == "__main__":
    command.run(main)
