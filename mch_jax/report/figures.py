"""The figures of the report: training curves, F1 against its costs, and the agent's decisions."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mch_jax.evaluation import measures
from mch_jax.files.codes_file import CodeFile
from mch_jax.report.plots import Plot, Scheme, legend, power_of_ten

# Curves in metrics.jsonl of more points than this are drawn as a mean over the pale values.
MANY_POINTS = 120


class Line(NamedTuple):
    """A training curve.

    Attributes:
      key: Name of the value in metrics.jsonl.
      label: Name for people.
      color: Name of its colour in a scheme.
    """

    key: str
    label: str
    color: str


class Panel(NamedTuple):
    """A figure of training curves; the fields are those of `Plot`."""

    name: str
    title: str
    lines: tuple[Line, ...]
    caption: str


PANELS = (
    Panel("base-loss", "Base model: loss", (Line("base/loss", "loss", "mch"),),
          "Pair loss plus quantization penalty of each batch."),
    Panel("agent-reward", "Agent: reward", (Line("agent/reward", "reward", "mch"),),
          "Mean reward of the agent’s decisions on random regions; keeping none of them gives 0."),
    Panel("agent-keep", "Agent: share of regions kept",
          (Line("agent/keep_rate", "kept", "mch"),
           Line("agent/reward_positive", "worth keeping", "base")),
          "Share of the regions that the agent keeps, and share with a positive reward."),
)  # fmt: skip


def _running_mean(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns a running mean over about a thirtieth of the curve, narrower at its ends."""
    half = len(values) // 60
    total = np.concatenate([[0.0], values.cumsum()])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _curve(metrics: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps and the finite values of one name in metrics.jsonl."""
    rows = [(row["step"], row[key]) for row in metrics if np.isfinite(row.get(key, np.nan))]
    steps, values = zip(*rows, strict=True) if rows else ((), ())
    return np.array(steps, np.int64), np.array(values, np.float64)


def _plot_curve(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    if len(values) >= MANY_POINTS:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
    marker = "o" if len(values) < 2 else None
    axes.plot(steps, _running_mean(values), color=color, linewidth=1.8, label=label, marker=marker)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def training(metrics: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Returns the training curves of PANELS that the run has values of.

    Args:
      metrics: The lines of metrics.jsonl.
    """
    result = []
    for panel in PANELS:
        curves = {line: _curve(metrics, line.key) for line in panel.lines}
        curves = {line: curve for line, curve in curves.items() if len(curve[0])}
        if not curves:
            continue

        def draw(axes: Axes, scheme: Scheme, curves=curves, name=panel.name) -> None:
            for line, (steps, values) in curves.items():
                _plot_curve(axes, steps, values, getattr(scheme, line.color), line.label)
            if name == "agent-reward":
                axes.axhline(0, color=scheme.soft, linewidth=0.8)
            if name == "agent-keep":
                axes.set_ylim(bottom=0)
                legend(axes, loc="lower left")

        alt = "; ".join(
            f"{line.label} from {values[0]:.3g} to {values[-1]:.3g} over {len(values):,} points"
            for line, (_, values) in curves.items()
        )
        result.append(Plot(panel.name, panel.title, f"Line chart: {alt}.", panel.caption, draw))
    return result


def pair_order(positive: Float[np.ndarray, " a"], negative: Float[np.ndarray, " b"]) -> float:
    """Returns the share of pairs in which the positive value is the larger one, ties as half.

    This is the area under the ROC curve.

    Args:
      positive: Values that should be large.
      negative: Values that should be small, at least one.
    """
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / (2 * len(negative)))


def rewards(reward: Float[np.ndarray, " r"]) -> Plot:
    """Returns the histogram of the true rewards of the database's regions."""
    low, high = np.percentile(reward, [0.5, 99.5])
    edge = max(-low, high, 1e-12)
    # 42 edges make an odd number of bins, so that the middle one lies around zero.
    bins = np.linspace(-edge, edge, 42)
    counts, _ = np.histogram(reward[reward != 0].clip(-edge, edge), bins)
    share = counts / len(reward)
    shares = [float((reward > 0).mean()), float((reward < 0).mean()), float((reward == 0).mean())]

    def draw(axes: Axes, scheme: Scheme) -> None:
        middle = (bins[1:] + bins[:-1]) / 2
        colors = [scheme.mch if x > 0 else scheme.bad for x in middle]
        axes.bar(middle, share, (bins[1] - bins[0]) * 0.88, color=colors)
        axes.axvline(0, color=scheme.ink, linewidth=0.9)
        axes.set(xlabel="true reward of keeping the region’s code", ylabel="share of regions")
        axes.margins(x=0.01)
        axes.bar(0, 0, color=scheme.bad, label="better without")
        axes.bar(0, 0, color=scheme.mch, label="worth keeping")
        axes.set_ylim(0, 1.28 * share.max(initial=1e-3))
        legend(axes, loc="upper center", ncols=2, columnspacing=1.5)

    text = (
        f"{shares[0]:.1%} of the database’s regions are worth keeping, {shares[1]:.1%} are better "
        f"left out, {shares[2]:.1%} change nothing"
    )
    caption = f"{text} (not drawn). The outermost bars include all values beyond."
    alt = f"Histogram of true rewards: {text}."
    return Plot("rewards", "True rewards of the regions", alt, caption, draw)


def keep_probabilities(
    keep_prob: Float[np.ndarray, " r"], reward: Float[np.ndarray, " r"], threshold: float
) -> Plot:
    """Returns the histograms of the agent's keep probabilities, by the sign of the true reward.

    Args:
      keep_prob: Keep probability of each region of the database.
      reward: True reward of each region.
      threshold: Keep threshold xi.
    """
    bins = np.linspace(0, 1, 31)
    positive, negative = keep_prob[reward > 0], keep_prob[reward < 0]
    kept = float((keep_prob >= threshold).mean())

    def draw(axes: Axes, scheme: Scheme) -> None:
        for values, label, color, dash in (
            (negative, "better without", scheme.bad, "--"),
            (positive, "worth keeping", scheme.mch, "-"),
        ):
            share = np.histogram(values, bins)[0] / len(keep_prob)
            axes.stairs(share, bins, fill=True, color=color, alpha=0.18)
            axes.stairs(share, bins, color=color, linewidth=1.6, linestyle=dash, label=label)
        axes.axvline(min(threshold, 1), color=scheme.ink, linewidth=0.9)
        begins = f"kept from {threshold:g} on" if threshold <= 1 else "none is kept"
        axes.set(xlabel=f"keep probability ({begins})", ylabel="share of regions")
        axes.margins(x=0.01)
        axes.set_ylim(0, 1.28 * axes.get_ylim()[1])
        legend(axes, loc="upper center", ncols=2, columnspacing=1.5)

    caption = f"The agent keeps {kept:.1%} of the regions."
    if len(positive) and len(negative):
        order = pair_order(positive, negative)
        caption += (
            f" Of a region worth keeping and one that isn’t, it gives the first the higher "
            f"probability in {order:.0%} of the cases; chance is 50%."
        )
    alt = f"Histograms of keep probabilities by the sign of the true reward. {caption}"
    return Plot("keep-probabilities", "Keep probabilities", alt, caption, draw)


def codes_per_photo(database: CodeFile) -> Plot:
    """Returns the shares of the database's photos that have one code, two codes, and so on."""
    counts = np.bincount(np.bincount(database.item, minlength=len(database.ids)))
    share = counts / len(database.ids)
    codes = np.arange(1, max(len(share), 7))
    share = np.pad(share, (0, max(0, 7 - len(share))))[1:]

    def draw(axes: Axes, scheme: Scheme) -> None:
        bars = axes.bar(codes, share, 0.72, color=scheme.mch)
        texts = [f"{y:.0%}" if y >= 0.01 or y == 0 else "<1%" for y in share]
        axes.bar_label(bars, texts, padding=2, color=scheme.soft, fontsize=8)
        axes.set(xlabel="different codes of one photo", ylabel="share of photos", xticks=codes)
        axes.margins(y=0.12)

    mean = len(database.item) / len(database.ids)
    alt = "Bar chart: " + ", ".join(f"{y:.1%} have {x}" for x, y in zip(codes, share, strict=True))
    caption = f"{mean:.2f} codes per photo on average (ANHC); the base model has one."
    return Plot("codes-per-image", "Codes per photo", alt + ".", caption, draw)


_NAMES = {"base": "base", "mch": "MCH", "hamming": "Hamming", "gqr": "GQR"}


def f1_at_equal_cost(results: Mapping[str, Any]) -> list[Plot]:
    """Returns F1 against buckets looked at, codes read, and bytes per photo.

    Args:
      results: What results.json holds; results of an earlier version give no figure.
    """
    if "probe" not in results["base"]:
        return []
    curves = [
        (kind, order, results[kind]["probe"][order])
        for kind in ("base", "mch")
        for order in ("hamming", "gqr")
        if order in results[kind]["probe"]
    ]
    budgets = results["base"]["probe"]["budget"]
    has_both = any(order == "gqr" for _, order, _ in curves)
    caption = (
        f"Each point is one budget: {', '.join(map(str, budgets))} buckets, by Hamming distance"
        f"{' or by quantization distance (GQR)' if has_both else ''}. Higher and further left is "
        "better."
    )
    plots = []
    for key, label in (("buckets", "buckets looked at"), ("candidates", "codes read")):
        lines = [
            (kind, order, budgets if key == "buckets" else curve[key], curve["f1"])
            for kind, order, curve in curves
        ]
        costs = [cost for _, _, x, _ in lines for cost in x]
        ticks = budgets if key == "buckets" else _ticks(float(min(costs)), float(max(costs)))

        def draw(axes: Axes, scheme: Scheme, lines=lines, label=label, ticks=ticks) -> None:
            for kind, order, x, y in lines:
                axes.plot(
                    x, y, "-" if order == "gqr" else "--", linewidth=1.7, markersize=4,
                    color=scheme.base if kind == "base" else scheme.mch,
                    marker="s" if kind == "base" else "o",
                    label=f"{_NAMES[kind]}, {_NAMES[order]}",
                )  # fmt: skip
            if ticks:
                axes.set_xscale("symlog", linthresh=1)
                axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
                axes.minorticks_off()
            else:
                axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set(xlabel=label, ylabel="F1")
            _from_zero(axes)
            legend(axes, loc="lower right")

        points = (
            f"{_NAMES[kind]} by {_NAMES[order]}, "
            + ", ".join(f"{f1:.3f} at {cost:,.0f}" for f1, cost in zip(y, x, strict=True))
            for kind, order, x, y in lines
        )
        alt = f"Line chart of F1 against {label}: {'; '.join(points)}."
        plots.append(Plot(f"equal-{key}", f"F1 at equal {label}", alt, caption, draw, width=4.2))
    return [*plots, _f1_by_bytes(results, budgets, "gqr" if has_both else "hamming")]


def _f1_by_bytes(results: Mapping[str, Any], budgets: Sequence[int], order: str) -> Plot:
    """Returns F1 after each budget against the bytes that a photo takes in the index."""
    size = {kind: results[kind]["bytes_per_image"] for kind in ("base", "mch")}
    f1 = {kind: results[kind]["probe"][order]["f1"] for kind in ("base", "mch")}

    def draw(axes: Axes, scheme: Scheme) -> None:
        for i, budget in enumerate(budgets):
            x, y = list(size.values()), [f1["base"][i], f1["mch"][i]]
            axes.plot(x, y, color=scheme.grid, linewidth=1.7, zorder=1)
            axes.annotate(
                f"{budget} bucket{'' if budget == 1 else 's'}", (x[1], y[1]), (7, 0),
                textcoords="offset points", va="center", fontsize=8, color=scheme.soft,
            )  # fmt: skip
        for kind, marker, color in (("base", "s", scheme.base), ("mch", "o", scheme.mch)):
            x = [size[kind]] * len(budgets)
            axes.plot(x, f1[kind], marker, markersize=5, color=color, label=_NAMES[kind])
        axes.set_xlim(0, 1.35 * max(size.values()))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set(xlabel="bytes per photo in the index", ylabel="F1")
        _from_zero(axes)
        legend(axes, loc="lower left")

    points = (
        f"{_NAMES[kind]} with {size[kind]:.1f} bytes, "
        + ", ".join(f"{y:.3f} at {x}" for x, y in zip(budgets, f1[kind], strict=True))
        for kind in ("base", "mch")
    )
    alt = f"Chart of F1 against bytes per photo, by number of buckets: {'; '.join(points)}."
    caption = (
        f"A photo takes {size['base']:.1f} bytes in the base model’s index and {size['mch']:.1f} "
        f"in MCH’s. Buckets are in the order of {'GQR' if order == 'gqr' else 'Hamming distance'}."
    )
    return Plot("equal-bytes", "F1 by bytes per photo", alt, caption, draw, width=4.2)


def _from_zero(axes: Axes) -> None:
    """Lets the vertical axis begin at zero and end above the highest point."""
    axes.set_ylim(0, 1.08 * max(axes.dataLim.ymax, 0.01))


def _ticks(low: float, high: float) -> list[int]:
    """Returns the ticks of a logarithmic axis, or none if a linear one shows the range better."""
    ticks = [x * 10**power for power in range(12) for x in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) > 3 else []


def f1_by_cost(results: Mapping[str, Any]) -> list[Plot]:
    """Returns F1 against each cost that the results have, for the base model and for MCH.

    Args:
      results: What results.json holds.
    """
    curves = {name: results[name]["f1_bucket"] for name in ("base", "mch")}
    k = curves["base"]["k"]
    best = {name: int(np.argmax(curve["f1"])) for name, curve in curves.items()}
    text = "; ".join(
        f"{'MCH' if name == 'mch' else 'base'} reaches its best F1 of "
        f"{curves[name]['f1'][at]:.3f} at K = {k[at]:,}"
        for name, at in best.items()
    )
    result = []
    for cost in measures.costs(results):

        def draw(axes: Axes, scheme: Scheme, cost=cost) -> None:
            for name, marker, color, word, dash in (
                ("base", "s", scheme.base, "base", "--"),
                ("mch", "o", scheme.mch, "MCH", "-"),
            ):
                x, y = curves[name][cost.key], curves[name]["f1"]
                axes.plot(
                    x, y, dash, color=color, marker=marker, markersize=4, linewidth=1.7, label=word
                )
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(power_of_ten))
            axes.set(xlabel=cost.label, ylabel="F1")
            axes.set_ylim(bottom=0)
            legend(axes, loc="upper left")

        caption = (
            f"Each point is one K, from {k[0]:,} to {k[-1]:,} photos. Higher and further left is "
            "better."
        )
        alt = f"Line chart of F1 against {cost.label}, base and MCH: {text}."
        title = f"F1 by {cost.title}"
        result.append(Plot(f"f1-{cost.key}", title, alt, caption, draw, width=4.2))
    return result
