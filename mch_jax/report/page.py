"""Stage 5: the report, one page to look at with its figures beside it.

The page needs no network and no script; every figure is drawn twice, for a light and a dark screen.
"""

import html
import importlib.resources
import json
import shutil
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt32
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from mch_jax.codes import from_bytes
from mch_jax.data import Dataset
from mch_jax.files import codes_file
from mch_jax.files.codes_file import CodeFile
from mch_jax.training import logs

NUM_QUERIES = 8
NUM_NEAREST = 10
THUMBNAIL = 160  # pixels of the longer side
_MAX_NAMES = 20  # damaged photos that are listed by name

# Key in results.json, name, decimals, meaning.
MEASURES = (
    ("map", "mAP", 3, "mean average precision of the whole ranking: how far up the relevant images "
     "stand, 1 when all of them come first."),
    ("map_at_5000", "mAP@5000", 3, "the same for the first 5,000 images only."),
    ("p_at_h0", "P@H=0", 3, "the share of relevant images among those that have a code equal to "
     "the query’s; an empty bucket counts as 0."),
    ("r_at_h0", "R@H=0", 4, "the share of all relevant images that have a code equal to the "
     "query’s: what one look into the hash table finds."),
    ("nonempty_at_h0", "Non-empty", 3, "the share of queries whose code some image has too."),
    ("p_at_h2", "P@H≤2", 3, "precision among the images within two bits of the query."),
    ("r_at_h2", "R@H≤2", 4, "recall within two bits of the query."),
    ("anhc", "ANHC", 2, "average number of hash codes an image, equal codes of one image counted "
     "once: what MCH pays in memory."),
)  # fmt: skip
_TERMS = (
    ("Chance mAP", "what a random ranking would score; a mAP says little without it."),
    ("F1-bucket", "the harmonic mean of precision and recall of the K nearest images, against the "
     "buckets of the hash table looked into to find them."),
    ("Probed, non-empty", "all buckets that were looked into, or only those that held an image."),
    ("Reward", "how much better the training images are told apart when a region’s code is kept "
     "beside the whole image’s; above 0, keeping helps."),
    ("Keep probability", "how strongly the agent wants to keep a region’s code. It sees no label."),
)  # fmt: skip
_ROWS = (
    ("base", "Base", "one code an image", ""),
    ("mch", "MCH", "the agent chooses", "mch"),
    ("never", "Never", "keep no region", "control"),
    ("always", "Always", "keep every region", "control"),
    ("random", "Random", "as many as MCH, drawn by lot", "control"),
    ("oracle", "Oracle", "what truly helps; looks at labels", "control"),
)
_RULES = (
    "Two images are relevant to each other when they share at least one label.",
    "An image with several codes counts once, at the nearest of them.",
    "Images at equal distance are tied. Measures average over all their orders; lists and the "
    "gallery show them in database order.",
    "An empty ball, where no image lies within the radius, has precision 0 and recall 0, and it "
    "counts in the means.",
    "A query without any relevant image is left out of every mean and of the gallery.",
    "Recall divides by all relevant images of the database.",
    "Measures are fractions between 0 and 1, not per cent.",
)


class Scheme(NamedTuple):
    """Colours of a figure; told apart with any kind of colour vision, and in grey."""

    suffix: str
    ink: str
    soft: str
    grid: str
    base: str
    mch: str
    bad: str


SCHEMES = (
    Scheme("", "#1f2328", "#5a616b", "#e6e3dc", "#5f6875", "#1f66ad", "#a8430d"),
    Scheme("-dark", "#e8e6e1", "#a5abb4", "#363b42", "#a3adba", "#7fb6f0", "#f0a06a"),
)


class Files(NamedTuple):
    """What the report reads of a workdir."""

    config: Mapping[str, Any]
    results: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    query: CodeFile
    database: CodeFile
    regions: Mapping[str, np.ndarray]


class Hits(NamedTuple):
    """The nearest items of one query, with the row in the codes file of the code that was hit."""

    item: Int[np.ndarray, " k"]
    distance: Int[np.ndarray, " k"]
    code: Int[np.ndarray, " k"]


class Pick(NamedTuple):
    """A query of the gallery."""

    query: int
    base: Hits
    mch: Hits


# ---- text ----------------------------------------------------------------------------------------


def show(value: float, digits: int) -> str:
    """Returns a number with so many decimals, with one digit where those would all be zero."""
    text = f"{value:.{digits}f}"
    return text if value == 0 or float(text) else f"{value:.0e}"


def _data(value: float, digits: int) -> str:
    """Returns a number for people that carries the exact one for machines."""
    return f'<data value="{value!r}">{show(value, digits)}</data>'


def _words(items: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def _table(rows: Iterable[tuple[str, str]], kind: str = "plain") -> str:
    body = "".join(f'<tr><th scope="row">{name}</th>{cells}</tr>' for name, cells in rows)
    return f'<table class="{kind}"><tbody>{body}</tbody></table>'


def verdict(results: Mapping[str, Any]) -> str:
    """Returns one sentence on what several codes an image changed, for better and for worse."""
    base, mch = results["base"], results["mch"]
    if base == mch:
        reason = "The agent kept no region" if "controls" in results else "This method has no agent"
        return f"{reason}: every image has one code, and MCH equals the base."
    risen, fallen, same = [], [], []
    for key, name, digits, _ in MEASURES:
        if key in ("map", "p_at_h0", "r_at_h0"):
            before, after = show(base[key], digits), show(mch[key], digits)
            if before == after:
                same.append(f"{name} at {after}")
            else:
                change = f"{name} from {before} to {after}"
                (risen if mch[key] > base[key] else fallen).append(change)
    parts = [("raises", risen), ("lowers", fallen), ("leaves", same)]
    parts = [f"{verb} {_words(changes)}" for verb, changes in parts if changes]
    joined = ", but ".join(parts) if risen and fallen and not same else _words(parts)
    return f"With {mch['anhc']:.2f} codes an image instead of one, MCH {joined}."


# ---- figures -------------------------------------------------------------------------------------


def style(axes: Axes, scheme: Scheme) -> None:
    """Leaves of the axes what is needed to read them."""
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(scheme.soft)
    axes.tick_params(colors=scheme.soft, labelsize=8, length=3, which="both")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", which="minor", length=0)
    axes.grid(axis="y", color=scheme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=scheme.soft, fontsize=8.5)


def legend(axes: Axes, **kwargs: Any) -> None:
    """Names the lines in their own colours."""
    axes.legend(frameon=False, fontsize=8.5, labelcolor="linecolor", handlelength=1.4, **kwargs)


def _figure(
    folder: Path,
    name: str,
    title: str,
    alt: str,
    caption: str,
    draw: Callable[[Axes, Scheme], None],
    width: float = 3.4,
) -> str:
    """Draws a figure for both schemes and returns its place in the page."""
    shape = (width, 2.4)
    for scheme in SCHEMES:
        figure = Figure(shape, dpi=240, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, scheme)
        style(axes, scheme)
        figure.savefig(folder / f"{name}{scheme.suffix}.png", transparent=True)
    pixels = tuple(round(96 * side) for side in shape)
    return (
        f"<figure><h3>{title}</h3><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{name}-dark.png">'
        f'<img src="{name}.png" width="{pixels[0]}" height="{pixels[1]}" '
        f'alt="{html.escape(alt)}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def _smooth(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns a running mean over about a thirtieth of the curve, narrower at its ends."""
    half = len(values) // 60
    total = np.concatenate([[0.0], values.cumsum()])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def _curve(metrics: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    rows = [(row["step"], row[name]) for row in metrics if np.isfinite(row.get(name, np.nan))]
    steps, values = zip(*rows, strict=True) if rows else ((), ())
    return np.array(steps, np.int64), np.array(values, np.float64)


def _plot_curve(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    if len(values) >= 120:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
    marker = "o" if len(values) < 2 else None
    axes.plot(steps, _smooth(values), color=color, linewidth=1.8, label=label, marker=marker)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _training(folder: Path, metrics: list[dict[str, Any]]) -> list[str]:
    """Draws the training curves for which there are numbers."""
    panels = (
        ("base-loss", "Base model: loss", (("base/loss", "loss", "mch"),),
         "Pair loss and quantization penalty together, batch by batch."),
        ("agent-reward", "Agent: reward", (("agent/reward", "reward", "mch"),),
         "Mean reward of what the agent does with random regions; keeping none of them earns 0."),
        ("agent-keep", "Agent: share of regions kept",
         (("agent/keep_rate", "kept", "mch"), ("agent/reward_positive", "worth keeping", "base")),
         "How many regions it keeps, beside how many of them have a positive reward."),
    )  # fmt: skip
    result = []
    for name, title, lines, caption in panels:
        curves = {line: _curve(metrics, line[0]) for line in lines}
        curves = {line: curve for line, curve in curves.items() if len(curve[0])}
        if not curves:
            continue

        def draw(axes: Axes, scheme: Scheme, curves=curves, name=name) -> None:
            for (_, label, color), (steps, values) in curves.items():
                _plot_curve(axes, steps, values, getattr(scheme, color), label)
            if name == "agent-reward":
                axes.axhline(0, color=scheme.soft, linewidth=0.8)
            if name == "agent-keep":
                axes.set_ylim(bottom=0)
                legend(axes, loc="lower left")

        alt = "; ".join(
            f"{label} from {values[0]:.3g} to {values[-1]:.3g} over {len(values):,} points"
            for (_, label, _), (_, values) in curves.items()
        )
        result.append(_figure(folder, name, title, f"Line chart: {alt}.", caption, draw))
    return result


def pair_order(positive: Float[np.ndarray, " a"], negative: Float[np.ndarray, " b"]) -> float:
    """Returns how often a value of the first kind exceeds one of the second, ties half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / (2 * len(negative)))


def _reward_figure(folder: Path, reward: Float[np.ndarray, " r"]) -> str:
    low, high = np.percentile(reward, [0.5, 99.5])
    edge = max(-low, high, 1e-12)
    bins = np.linspace(-edge, edge, 42)  # an even number of bins: one edge lies at zero
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
    caption = f"{text} (not drawn). The outermost bars hold the tails."
    alt = f"Histogram of true rewards: {text}."
    return _figure(folder, "rewards", "What a region’s code is worth", alt, caption, draw)


def _keep_figure(
    folder: Path,
    keep_prob: Float[np.ndarray, " r"],
    reward: Float[np.ndarray, " r"],
    threshold: float,
) -> str:
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
        axes.axvline(threshold, color=scheme.ink, linewidth=0.9)
        axes.set(xlabel=f"keep probability (kept from {threshold:g} on)", ylabel="share of regions")
        axes.margins(x=0.01)
        axes.set_ylim(0, 1.28 * axes.get_ylim()[1])
        legend(axes, loc="upper center", ncols=2, columnspacing=1.5)

    caption = f"The agent keeps {kept:.1%} of the regions."
    if len(positive) and len(negative):
        order = pair_order(positive, negative)
        caption += (
            f" Of a region worth keeping and one that isn’t, it gives the first the higher "
            f"probability in {order:.0%} of the cases; guessing would give 50%."
        )
    alt = f"Histograms of keep probabilities by the sign of the true reward. {caption}"
    return _figure(folder, "keep-probabilities", "What the agent thinks of it", alt, caption, draw)


def _anhc_figure(folder: Path, database: CodeFile) -> str:
    counts = np.bincount(np.bincount(database.item, minlength=len(database.ids)))
    share = counts / len(database.ids)
    codes = np.arange(1, max(len(share), 7))
    share = np.pad(share, (0, max(0, 7 - len(share))))[1:]

    def draw(axes: Axes, scheme: Scheme) -> None:
        bars = axes.bar(codes, share, 0.72, color=scheme.mch)
        texts = [f"{y:.0%}" if y >= 0.01 or y == 0 else "<1%" for y in share]
        axes.bar_label(bars, texts, padding=2, color=scheme.soft, fontsize=8)
        axes.set(xlabel="different codes of one image", ylabel="share of images", xticks=codes)
        axes.margins(y=0.12)

    mean = len(database.item) / len(database.ids)
    alt = "Bar chart: " + ", ".join(f"{y:.1%} have {x}" for x, y in zip(codes, share, strict=True))
    caption = f"{mean:.2f} codes an image on average (ANHC); the base has one."
    return _figure(folder, "codes-per-image", "Codes an image", alt + ".", caption, draw)


def power(value: float, _: int) -> str:
    """Returns the label of a logarithmic axis."""
    exponent = round(np.log10(value))
    return f"{value:,.0f}" if exponent < 4 else f"$10^{{{exponent}}}$"


def _f1_figures(folder: Path, results: Mapping[str, Any]) -> list[str]:
    curves = {name: results[name]["f1_bucket"] for name in ("base", "mch")}
    k = curves["base"]["k"]
    best = {name: int(np.argmax(curve["f1"])) for name, curve in curves.items()}
    text = "; ".join(
        f"{'MCH' if name == 'mch' else 'base'} reaches its best F1 of "
        f"{curves[name]['f1'][at]:.3f} at K = {k[at]:,}"
        for name, at in best.items()
    )
    result = []
    for axis, title, label in (
        ("probed", "F1 by buckets probed", "buckets probed, empty ones too"),
        ("nonempty", "F1 by non-empty buckets", "non-empty buckets looked into"),
    ):

        def draw(axes: Axes, scheme: Scheme, axis=axis, label=label) -> None:
            for name, marker, color, word, dash in (
                ("base", "s", scheme.base, "base", "--"),
                ("mch", "o", scheme.mch, "MCH", "-"),
            ):
                x, y = curves[name][axis], curves[name]["f1"]
                axes.plot(
                    x, y, dash, color=color, marker=marker, markersize=4, linewidth=1.7, label=word
                )
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(power))
            axes.set(xlabel=label, ylabel="F1")
            axes.set_ylim(bottom=0)
            legend(axes, loc="upper left")

        caption = (
            f"Each point is one K, from {k[0]:,} to {k[-1]:,} images asked for; further up and "
            "further left is better."
        )
        alt = f"Line chart of F1 against {label}, base and MCH: {text}."
        result.append(_figure(folder, f"f1-{axis}", title, alt, caption, draw, width=4.2))
    return result


# ---- gallery -------------------------------------------------------------------------------------


def nearest(
    query: UInt32[np.ndarray, " w"],
    packed: UInt32[np.ndarray, "c w"],
    starts: Int[np.ndarray, " n"],
    k: int,
) -> Hits:
    """Returns the k nearest items of a query, equal distances in ascending item order.

    Args:
      query: the query's packed code.
      packed: packed codes of the items, one item's after another.
      starts: the row of each item's first code.
      k: how many items; all of them where there are fewer.
    """
    distance = np.bitwise_count(packed ^ query[None]).sum(1, dtype=np.int16)
    item_distance = np.minimum.reduceat(distance, starts)
    item = np.argsort(item_distance, kind="stable")[:k]
    ends = np.append(starts, len(packed))[item + 1]
    spans = zip(starts[item].tolist(), ends.tolist(), strict=True)
    code = np.array([start + distance[start:end].argmin() for start, end in spans], np.int64)
    return Hits(item, item_distance[item].astype(np.int32), code)


def relevant(files: Files, query: int, item: Int[np.ndarray, " k"]) -> np.ndarray:
    """Returns which items share a label with a query."""
    return (files.database.labels[item] & files.query.labels[query]).any(1)


def choose(
    gain: Int[np.ndarray, " m"], eligible: Int[np.ndarray, " e"], num_most: int, num_spread: int
) -> list[int]:
    """Returns the queries to show: those where MCH gains most, then some evenly spread.

    Args:
      gain: relevant items among the first under MCH, less those under the base.
      eligible: queries to choose from, ascending.
      num_most: how many to choose by their gain, earlier queries first where it is equal.
      num_spread: how many to choose of the remaining ones.
    """
    order = eligible[np.argsort(-gain[eligible], kind="stable")]
    most, rest = order[:num_most], np.sort(order[num_most:])
    at = np.linspace(0, len(rest) - 1, min(num_spread, len(rest))).round().astype(int)
    return [*most.tolist(), *rest[at].tolist()]


def pick_queries(files: Files) -> list[Pick]:
    """Searches for every query with the base codes and with all codes, and picks some to show."""
    database, num_bits = files.database, files.database.num_bits
    packed = from_bytes(database.codes, num_bits)
    starts = np.searchsorted(database.item, np.arange(len(database.ids)))
    whole = packed[starts]
    some = (files.query.labels @ database.labels.sum(0, dtype=np.int64)) > 0
    picks, gain = [], np.zeros(len(files.query.ids), np.int64)
    for row, query in enumerate(from_bytes(files.query.codes, num_bits)):
        base = nearest(query, whole, np.arange(len(starts)), NUM_NEAREST)
        base = base._replace(code=starts[base.item])
        mch = nearest(query, packed, starts, NUM_NEAREST)
        picks.append(Pick(row, base, mch))
        gain[row] = relevant(files, row, mch.item).sum() - relevant(files, row, base.item).sum()
    num_most = NUM_QUERIES // 2 if _several(files) else 0
    chosen = choose(gain, np.flatnonzero(some), num_most, NUM_QUERIES - num_most)
    return [picks[row] for row in chosen]


def _several(files: Files) -> bool:
    """Returns whether any image has several codes."""
    return len(files.database.codes) > len(files.database.ids)


class Gallery:
    """Writes thumbnails, each once, and the parts of the page that show them."""

    def __init__(self, folder: Path, dataset: Dataset, files: Files):
        self._folder, self._dataset, self._files = folder, dataset, files
        self._rows = {str(name): row for row, name in enumerate(dataset.ids)}
        self._sizes: dict[int, tuple[int, int]] = {}

    def _thumbnail(self, name: str) -> tuple[str, tuple[int, int]]:
        """Returns the file of an image's thumbnail and the image's own width and height."""
        row = self._rows[name]
        path = f"thumbnails/{row:06d}.jpg"
        if row not in self._sizes:
            image = Image.fromarray(self._dataset.read(row))
            self._sizes[row] = image.size
            image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            (self._folder / path).parent.mkdir(exist_ok=True)
            image.save(self._folder / path, quality=88)
        return path, self._sizes[row]

    def _cell(self, name: str, alt: str, box: Sequence[int] = ()) -> str:
        """Returns a photo in a square, with a region of it drawn unless that is all of it."""
        path, (width, height) = self._thumbnail(name)
        side = f"{'width' if width >= height else 'height'}:100%;aspect-ratio:{width}/{height}"
        overlay = ""
        if len(box):
            left, top, right, bottom = box
            style = (
                f"left:{left / width:.2%};top:{top / height:.2%};"
                f"width:{(right - left) / width:.2%};height:{(bottom - top) / height:.2%}"
            )
            overlay = f'<span class="box" style="{style}"></span>'
        return (
            f'<div class="cell"><div class="photo" style="{side}"><img src="{path}" loading="lazy" '
            f'alt="{html.escape(alt)}" title="{html.escape(name)}">{overlay}</div></div>'
        )

    def _labels(self, labels: np.ndarray, shared: np.ndarray) -> str:
        names = {i: html.escape(self._dataset.classes[i]) for i in np.flatnonzero(labels)}
        words = [f"<b>{name}</b>" if shared[i] else name for i, name in names.items()]
        return f'<div class="labels">{", ".join(words) or "no label"}</div>'

    def _classes(self, labels: np.ndarray) -> str:
        return _words([self._dataset.classes[i] for i in np.flatnonzero(labels)]) or "no label"

    def _hit(self, query: int, item: int, distance: int, code: int) -> str:
        database = self._files.database
        name, labels = str(database.ids[item]), database.labels[item]
        shared = labels & self._files.query.labels[query]
        first = code == 0 or database.item[code - 1] != item
        box = () if first else database.box[code].tolist()
        region = place(box, self._thumbnail(name)[1]) if box else "whole image"
        kind, mark = ("yes", "✓") if shared.any() else ("no", "✕")
        word = "relevant" if shared.any() else "irrelevant"
        bits = f"{distance} bit" if distance == 1 else f"{distance} bits"
        alt = f"{self._classes(labels)}; {word}, at {bits}, by its {region}"
        return (
            f'<li class="{kind}">{self._cell(name, alt, box)}'
            f'<div class="verdict"><span>{mark}</span><span>{bits}</span></div>'
            f"{self._labels(labels, shared)}</li>"
        )

    def _answer(self, title: str, query: int, hits: Hits) -> str:
        found = int(relevant(self._files, query, hits.item).sum())
        items = "".join(
            self._hit(query, *(int(value) for value in hit)) for hit in zip(*hits, strict=True)
        )
        return (
            f'<div class="answer"><h4>{title} <span>{found} of {len(hits.item)} relevant</span>'
            f'</h4><ol class="row" aria-label="{title}: nearest images">{items}</ol>'
            "</div>"
        )

    def card(self, pick: Pick) -> str:
        """Returns one query with its nearest images under the base and under MCH."""
        name, labels = str(self._files.query.ids[pick.query]), self._files.query.labels[pick.query]
        answers = self._answer("Base", pick.query, pick.base)
        if _several(self._files):
            answers += self._answer("MCH", pick.query, pick.mch)
        photo = self._cell(name, f"Query: {self._classes(labels)}")
        return (
            f'<section class="query"><div class="asked">{photo}<div><h3>Query</h3>'
            f"{self._labels(labels, labels)}"
            f'<span class="id">{html.escape(name)}</span></div></div>'
            f"<div>{answers}</div></section>"
        )


def place(box: Sequence[int], size: tuple[int, int]) -> str:
    """Returns where in an image of this width and height a region lies, as in "top left"."""
    across = int(1.5 * (box[0] + box[2]) / size[0])
    down = int(1.5 * (box[1] + box[3]) / size[1])
    words = (("top", "middle", "bottom")[down], ("left", "middle", "right")[across])
    return " ".join(dict.fromkeys(words))


# ---- the page ------------------------------------------------------------------------------------


def _header(results: Mapping[str, Any]) -> str:
    counts = results["dataset"]
    classes = counts["classes"]
    facts = {
        "Data set": html.escape(str(counts["name"])),
        "Base model": html.escape(results["method"].upper()),
        "Code length": f"{results['num_bits']} bits",
        "Seed": results["seed"],
        "Queries": f"{counts['queries']:,}",
        "Database": f"{counts['database']:,} images",
        "of these for training": f"{counts['train']:,}",
        "Classes": classes if isinstance(classes, int) else len(classes),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return (
        '<header><p class="over">Multiple Code Hashing</p>'
        f"<h1>{html.escape(_title(results))}</h1>"
        f'<p class="lead">{verdict(results)}</p><dl class="facts">{items}</dl></header>'
    )


def _title(results: Mapping[str, Any]) -> str:
    name, method = results["dataset"]["name"], results["method"].upper()
    return f"{name}, {method} at {results['num_bits']} bits"


def _change(before: float, after: float, digits: int) -> str:
    """Returns a mark and a word for the direction of a change that the shown digits show."""
    if show(before, digits) == show(after, digits):
        return ""
    kind, mark, word = ("better", "▲", "higher") if after > before else ("worse", "▼", "lower")
    return f'<span class="mark {kind}" role="img" aria-label="{word}">{mark}</span>'


def _tiles(results: Mapping[str, Any]) -> str:
    base, mch, tiles = results["base"], results["mch"], []
    for key, name, digits, _ in MEASURES:
        if key in ("map", "p_at_h0", "r_at_h0", "anhc"):
            was = f"base {show(base[key], digits)}"
            was += f", chance {show(results['chance_map'], digits)}" if key == "map" else ""
            mark = _change(base[key], mch[key], digits) if key != "anhc" else ""
            tiles.append(
                f'<div class="tile"><dl><dt>{name} with MCH</dt><dd><span class="now">{mark}'
                f'{show(mch[key], digits)}</span><div class="was">{was}</div></dd></dl></div>'
            )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _row(results: Mapping[str, Any], name: str, measures: Mapping[str, Any]) -> str:
    """Returns the numbers of one way to choose codes, those of MCH marked against the base."""
    cells = []
    for key, _, digits, _ in MEASURES:
        mark = ""
        if name == "mch" and key != "anhc":
            mark = _change(results["base"][key], measures[key], digits)
        cells.append(f"<td>{mark}{_data(measures[key], digits)}</td>")
        if key == "map":
            cells.append(f"<td>{measures[key] - results['chance_map']:+.3f}</td>")
    return "".join(cells)


def _results(results: Mapping[str, Any]) -> str:
    heads = [name for _, name, _, _ in MEASURES]
    heads.insert(1, "over chance")
    empty = '<td class="none" aria-label="none">–</td>'
    chance = f"<td>{_data(results['chance_map'], 3)}</td>{empty}"
    rows = [
        ("Chance<small>a random ranking</small>", chance + empty * (len(MEASURES) - 1), "control")
    ]
    for name, title, note, kind in _ROWS:
        measures = results.get(name) or results.get("controls", {}).get(name)
        if measures:
            cells = _row(results, name, measures)
            rows.append((f"{title}<small>{note}</small>", cells, kind))
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{title}</th>{cells}</tr>'
        for title, cells, kind in rows
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Codes", *heads))
    note = "▲ and ▼ mark what MCH raises or lowers against the base."
    if "controls" in results:
        note += (
            " The last four rows are controls on the same codes: they show what the choice itself "
            "is worth."
        )
    return (
        f"<section><h2>Results</h2>{_tiles(results)}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of results"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<p class="note">{note} Every measure is explained <a href="#terms">below</a>.</p>'
        "</section>"
    )


def _section(title: str, text: str, parts: Sequence[str], kind: str = "figures") -> str:
    if not parts:
        return ""
    inside = f'<div class="{kind}">{"".join(parts)}</div>'
    return f"<section><h2>{title}</h2><p>{text}</p>{inside}</section>"


def _decisions(folder: Path, files: Files) -> list[str]:
    if "controls" not in files.results:  # a method without an agent
        return []
    keep_prob, reward = (files.regions[name][:, 1:].ravel() for name in ("keep_prob", "reward"))
    threshold = files.config["encode"]["keep_threshold"]
    return [
        _reward_figure(folder, reward),
        _keep_figure(folder, keep_prob, reward, threshold),
        _anhc_figure(folder, files.database),
    ]


def _gallery(folder: Path, dataset: Dataset, files: Files) -> str:
    picks = pick_queries(files)
    gallery = Gallery(folder, dataset, files)
    text = "The queries shown are spread evenly over all queries. "
    if _several(files):
        text = (
            f"The first {min(NUM_QUERIES // 2, len(picks))} queries are those where MCH gains most "
            f"in relevant images among the first {NUM_NEAREST}; the others are spread evenly over "
            "the remaining queries. A yellow box marks the region whose code was hit; without a "
            "box it was the whole image’s. "
        )
    text += (
        "Below each image stand ✓ for relevant or ✕ for irrelevant, its distance, and its labels, "
        "those of the query in bold."
    )
    return _section("Gallery", text, [gallery.card(pick) for pick in picks], "gallery")


def _audit(audit: Mapping[str, Any]) -> str:
    counts = {
        "Photos": f"{audit['n']:,}",
        "Queries, none of them in the database": f"{audit['queries']:,}",
        "Database": f"{audit['database']:,}",
        "Training, all of it in the database": f"{audit['train']:,}",
        "Photos without a label": f"{audit['unlabelled']:,}",
        "Labels a photo": f"{audit['labels_per_photo']:.2f}",
        "Queries without a relevant image": f"{audit['queries_without_relevant']:,}",
        "Share of the database relevant to a query": f"{audit['relevant_share']:.3f}",
        "Damaged photos left out": f"{len(audit['damaged']):,}",
    }
    rows = [(name, f"<td>{value}</td>") for name, value in counts.items()]
    most = max(audit["per_class"].values(), default=1) or 1
    bar = '<td class="bar"><span style="width:{:.1%}"></span></td><td>{:,}</td>'
    classes = [
        (html.escape(name), bar.format(n / most, n)) for name, n in audit["per_class"].items()
    ]
    damaged = "".join(f"<li>{html.escape(reason)}</li>" for reason in audit["reasons"][:_MAX_NAMES])
    if damaged:
        more = len(audit["reasons"]) - _MAX_NAMES
        damaged += f"<li>and {more:,} more</li>" if more > 0 else ""
        damaged = (
            f'<details><summary>Damaged photos</summary><ul class="rules">{damaged}</ul></details>'
        )
    rules = "".join(f"<li>{rule}</li>" for rule in _RULES)
    return (
        "<section><h2>The data set</h2><p>Every photo was opened and every list checked before the "
        'run.</p><div class="split">'
        f"<div><h3>Counts</h3>{_table(rows)}{damaged}</div>"
        f"<div><h3>Photos by class</h3>{_table(classes)}</div></div></section>"
        f'<section><h2>The rules</h2><ul class="rules">{rules}</ul></section>'
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _terms(config: Mapping[str, Any]) -> str:
    terms = [(name, meaning) for _, name, _, meaning in MEASURES]
    terms.insert(1, _TERMS[0])
    items = "".join(f"<dt>{name}</dt><dd>{meaning}</dd>" for name, meaning in (*terms, *_TERMS[1:]))
    rows = [(html.escape(k), f"<td>{html.escape(json.dumps(v))}</td>") for k, v in _flat(config)]
    return (
        f'<section id="terms"><h2>The measures</h2><dl class="terms">{items}</dl>'
        f"<details><summary>Every setting of the run</summary>{_table(rows)}</details></section>"
    )


def _page(folder: Path, dataset: Dataset, audit: Mapping[str, Any], files: Files) -> str:
    """Writes the figures and thumbnails into a folder and returns the page."""
    results = files.results
    main = (
        _results(results),
        _section(
            "Search",
            "A hash table answers a query bucket by bucket, nearest codes first. Looking into "
            "buckets is what it costs, F1 what it brings.",
            _f1_figures(folder, results),
        ),
        _gallery(folder, dataset, files),
        _section(
            "What the agent decided",
            "Each image offers five regions beside itself: its corners and its middle. A region’s "
            "code is kept where the agent is confident enough, and stored once where it equals "
            "another code of the image.",
            _decisions(folder, files),
        ),
        _section("Training", "As logged while the run went on.", _training(folder, files.metrics)),
        _audit(audit),
        _terms(files.config),
    )
    body = (
        f"{_header(results)}<main>{''.join(main)}</main>"
        "<footer>Written by mch_jax. This page needs no network.</footer>"
    )
    template = (importlib.resources.files("mch_jax.report") / "report.html").read_text("utf-8")
    title = html.escape(_title(results))
    return string.Template(template).substitute(title=title, body=body)


def _read_json(path: Path, stage: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; run the {stage} stage first")
    return json.loads(path.read_text())


def read(workdir: Path) -> Files:
    """Returns what the report shows of a finished run.

    Raises:
      ValueError: a stage has not run yet.
    """
    path = workdir / "codes" / "regions.npz"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; run the encode stage first")
    with np.load(path, allow_pickle=False) as file:
        regions = {name: file[name] for name in ("keep_prob", "reward")}
    return Files(
        config=_read_json(workdir / "config.json", "base"),
        results=_read_json(workdir / "results.json", "evaluate"),
        metrics=logs.read_metrics(workdir / "metrics.jsonl"),
        query=codes_file.load(workdir / "codes" / "query.npz"),
        database=codes_file.load(workdir / "codes" / "database.npz"),
        regions=regions,
    )


def write(workdir: Path, dataset: Dataset, audit: Mapping[str, Any]) -> Path:
    """Writes the report of a finished run, whole or not at all.

    Args:
      workdir: the run's folder, with results.json and the codes files.
      dataset: the run's data set, for the gallery.
      audit: what `data.audit` counted.

    Returns:
      The path of the page, report/index.html in the workdir.

    Raises:
      ValueError: a stage that the report shows has not run yet, or a photo of the gallery no longer
        decodes.
    """
    workdir = Path(workdir)
    files = read(workdir)
    report, new, old = (workdir / name for name in ("report", ".report-new", ".report-old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    try:
        (new / "index.html").write_text(_page(new, dataset, audit, files), "utf-8")
        if report.exists():
            report.rename(old)
        new.rename(report)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return report / "index.html"
