"""The paper's figures from the runs of a grid, each a PNG file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter
from PIL import Image

from mch_jax.evaluation import comparison
from mch_jax.evaluation.comparison import Results, Runs, estimate
from mch_jax.evaluation.measures import COSTS, MEASURE
from mch_jax.report import plots, run_files
from mch_jax.report.gallery import pick_answers, relevant
from mch_jax.training import run

SCHEME = plots.SCHEMES[0]
_RELEVANT = "#2e7d4f"  # frame of a relevant photo
_LINES = (("base", SCHEME.base, "--", "s"), ("mch", SCHEME.mch, "-", "o"))


def method_title(method: str, kind: str = "base") -> str:
    """Returns a method's name as its authors write it.

    Args:
      method: Name of the method.
      kind: `base`, or `mch` to put MCH before the name.
    """
    text = {"hashnet": "HashNet"}.get(method, method.upper())
    return f"MCH-{text}" if kind == "mch" else text


def _panels(count: int, width: float = 2.5, height: float = 2.1) -> tuple[Figure, list[Axes]]:
    """Returns a figure with panels in one row, or in two rows from five panels on.

    Args:
      count: Number of panels.
      width: Width of a panel in inches.
      height: Height of a panel in inches.
    """
    lines = 1 if count < 5 else 2
    columns = -(-count // lines)
    figure = Figure((width * columns, height * lines), dpi=200, layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _finish(axes: Axes) -> None:
    """Styles a panel whose values begin at 0."""
    axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    plots.style(axes, SCHEME)
    plots.legend(axes)


def radius_figure(runs: Runs, key: str, path: Path) -> None:
    """Draws a measure against code length, for base and MCH (Figures 3 and 4).

    Args:
      runs: Runs of methods with an agent.
      key: Key of the measure, one within radius 0.
      path: PNG file to write.
    """
    found = comparison.method_names(runs)
    figure, panels = _panels(len(found))
    for axes, method in zip(panels, found, strict=True):
        lengths = [num_bits for m, num_bits in runs if m == method]
        for kind, color, dash, marker in _LINES:
            values = [estimate([r[kind][key] for r in runs[method, n]]) for n in lengths]
            axes.errorbar(
                lengths,
                [value.mean for value in values],
                np.nan_to_num([value.half for value in values]),
                color=color,
                linestyle=dash,
                marker=marker,
                markersize=4,
                capsize=2,
                label=method_title(method, kind),
            )
        axes.set(xlabel="bits", ylabel=MEASURE[key].title, xticks=lengths)
        _finish(axes)
    figure.savefig(path, facecolor="white")


def f1_figure(runs: Runs, num_bits: int, path: Path) -> None:
    """Draws F1 against buckets probed for the first seed of each method (Figures 5 to 7).

    Args:
      runs: Runs of methods with an agent.
      num_bits: Code length.
      path: PNG file to write.
    """
    cost = COSTS[0]
    found = {method: several[0] for (method, n), several in runs.items() if n == num_bits}
    figure, panels = _panels(len(found))
    for axes, (method, results) in zip(panels, found.items(), strict=True):
        for kind, color, dash, marker in _LINES:
            curve = results[kind]["f1_bucket"]
            axes.plot(
                curve[cost.key],
                curve["f1"],
                dash,
                color=color,
                marker=marker,
                markersize=3,
                label=method_title(method, kind),
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(plots.power_of_ten))
        axes.set(xlabel=cost.label, ylabel="F1")
        _finish(axes)
    figure.savefig(path, facecolor="white")


def sensitivity_figure(sweeps: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draws mAP and codes per photo against the keep threshold, one line per ratio (Figure 9).

    Args:
      sweeps: Rows of sweep.json, by the title of the run.
      path: PNG file to write.
    """
    figure, panels = _panels(2 * len(sweeps), 3.2, 2.5)
    pairs = zip(panels[::2], panels[1::2], strict=True)
    for pair, (title, rows) in zip(pairs, sweeps.items(), strict=True):
        ratios = sorted({row["crop_ratio"] for row in rows})
        for axes, key, label in zip(pair, ("map", "anhc"), ("mAP", "codes per photo"), strict=True):
            for number, ratio in enumerate(ratios):
                line = sorted(
                    (row["keep_threshold"], row[key]) for row in rows if row["crop_ratio"] == ratio
                )
                shade = 0.25 + 0.75 * number / max(len(ratios) - 1, 1)
                axes.plot(
                    *zip(*line, strict=True),
                    color=SCHEME.mch,
                    alpha=shade,
                    marker="os^Dv"[number % 5],
                    markersize=4,
                    label=f"σ = {ratio:g}",
                )
            axes.set(xlabel="keep threshold ξ", ylabel=label)
            axes.set_title(title, fontsize=8.5, color=SCHEME.ink)
            plots.style(axes, SCHEME)
            axes.legend(frameon=False, fontsize=7.5)
    figure.savefig(path, facecolor="white")


def gallery_figure(results: Results, path: Path, num_rows: int = 4) -> None:
    """Draws nearest photos under MCH with their distance by the base and by MCH (Figure 8).

    The queries are those of the run's report where MCH gains most. The frame of a relevant photo is
    green, that of any other orange. A box marks the region whose code is nearest.

    Args:
      results: Results of a run, with its directory as `workdir`.
      path: PNG file to write.
      num_rows: Number of queries.

    Raises:
      ValueError: The run's photos cannot be read.
    """
    workdir = Path(results["workdir"])
    files = run_files.read(workdir)
    dataset = run.read_dataset(files.config)
    rows = {str(name): row for row, name in enumerate(dataset.ids)}
    answers = pick_answers(files)[:num_rows]
    database = files.database
    starts = np.searchsorted(database.item, np.arange(len(database.ids)))
    columns = 1 + len(answers[0].mch.item)
    figure = Figure((1.15 * columns, 1.5 * len(answers)), dpi=160, layout="constrained")
    grid = figure.subplots(len(answers), columns, squeeze=False)
    for line, answer in zip(grid, answers, strict=True):
        query = files.query.codes[answer.query]
        _photo(line[0], dataset.read(rows[str(files.query.ids[answer.query])]), SCHEME.ink)
        line[0].set_xlabel("query", fontsize=7.5, color=SCHEME.ink)
        shared = relevant(files, answer.query, answer.mch.item)
        neighbours = zip(line[1:], *answer.mch, shared, strict=True)
        for axes, item, distance, code, is_relevant in neighbours:
            color = _RELEVANT if is_relevant else SCHEME.bad
            _photo(axes, dataset.read(rows[str(database.ids[item])]), color)
            if code != starts[item]:
                _box(axes, database.box[code].tolist())
            whole = int(np.bitwise_count(database.codes[starts[item]] ^ query).sum())
            mark = "✓" if is_relevant else "✕"
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


def _box(axes: Axes, box: Sequence[int]) -> None:
    """Draws the box of a region, a little smaller so that it stays clear of the photo's frame."""
    left, top, right, bottom = box
    inset = (right - left) * 0.03
    left, top, right, bottom = left + inset, top + inset, right - inset, bottom - inset
    corner, width, height = (left, top), right - left, bottom - top
    axes.add_patch(Rectangle(corner, width, height, fill=False, ec="gold", lw=1.8))
