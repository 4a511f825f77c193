"""Draws the figures of the documentation from a finished run on the scenes.

bash launch/demo.sh && .venv/bin/python launch/figures.py --run=runs/demo --out=docs/figures

idea.png: a photo of the database, its codes, and the photos nearest to each code.
losses.png: each method's pair loss by distance, which also defines the reward.
regions.png: the six regions of encoding.
"""

import argparse
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from mch_jax import data, methods, regions
from mch_jax.files import codes_file
from mch_jax.methods import base as method_losses
from mch_jax.training import run

INK, SOFT, BLUE, ORANGE, GREY = "#1f2328", "#5a616b", "#1f66ad", "#a8430d", "#dedbd4"
plt.rcParams.update({"font.size": 9, "text.color": INK, "axes.edgecolor": GREY})


def bits(packed: np.ndarray, num_bits: int) -> np.ndarray:
    """Returns the bits of one packed code."""
    return np.unpackbits(packed, bitorder="little")[:num_bits]


def apart(file: codes_file.CodeFile, code: np.ndarray) -> np.ndarray:
    """Returns the distance from a code to the nearest code of each item."""
    distance = np.bitwise_count(file.codes ^ code).sum(1)
    return np.minimum.reduceat(distance, np.searchsorted(file.item, np.arange(len(file.ids))))


def neighbours(file: codes_file.CodeFile, row: int, count: int) -> np.ndarray:
    """Returns the items nearest to one code of the file, without the code's own item."""
    distance = apart(file, file.codes[row])
    order = np.argsort(distance, kind="stable")
    return order[order != file.item[row]][:count]


def choose(file: codes_file.CodeFile, count: int) -> int:
    """Returns the item whose codes find the largest number of its classes."""
    rng = np.random.default_rng(0)
    best, best_score = 0, -1.0
    several = np.flatnonzero(np.bincount(file.item) >= 3)
    for item in rng.permutation(several)[:400]:
        first, last = np.searchsorted(file.item, [item, item + 1])
        if not 2 <= file.labels[item].sum() <= 3 or last - first > 4:
            continue
        shown, score = set(), 0.0
        for row in range(first, last):
            share = file.labels[neighbours(file, row, count)].mean(0) * file.labels[item]
            shown.add(int(share.argmax()))
            score += float(share.max())
        score = len(shown) + score / (last - first)
        if score > best_score:
            best, best_score = int(item), score
    return best


def idea(dataset: data.Dataset, file: codes_file.CodeFile, path: Path, count: int = 7) -> None:
    """Draws a photo, its codes, and the photos nearest to each code."""
    item = choose(file, count)
    first, last = np.searchsorted(file.item, [item, item + 1])
    rows = list(range(first, last))
    rows_of = {str(name): i for i, name in enumerate(dataset.ids)}

    def photo(i: int) -> np.ndarray:
        return dataset.read(rows_of[str(file.ids[i])])

    def names(i: int) -> str:
        return " + ".join(np.array(dataset.classes)[file.labels[i] > 0])

    figure = plt.figure(figsize=(9.6, 1.08 * len(rows) + 0.2), dpi=125)
    grid = figure.add_gridspec(
        len(rows), count + 4, left=0.01, right=0.995, top=1 - 0.24 / (1.08 * len(rows)),
        bottom=0.02, hspace=0.3, wspace=0.06,
    )  # fmt: skip
    axes = figure.add_subplot(grid[:, :2])
    image = photo(item)
    axes.imshow(image)
    axes.set_title(f"one photo:\n{names(item)}", fontsize=9)
    axes.axis("off")
    for number, row in enumerate(rows):
        left, top, right, bottom = file.box[row]
        color = BLUE if number == 0 else plt.get_cmap("tab10")(number)
        scale = 1.5
        corner = (left - 0.5 + scale, top - 0.5 + scale)
        size = (right - left - 2 * scale, bottom - top - 2 * scale)
        axes.add_patch(Rectangle(corner, *size, fill=False, color=color, lw=2))
        inner = figure.add_subplot(grid[number, 2])
        inner.imshow(image[top:bottom, left:right])
        inner.set_xticks([])
        inner.set_yticks([])
        for spine in inner.spines.values():
            spine.set(color=color, linewidth=2)
        title = "the whole" if number == 0 else f"a crop, p = {file.keep_prob[row]:.2f}"
        inner.set_title(title, fontsize=8, color=color)
        code = figure.add_subplot(grid[number, 3])
        width = 8
        code.imshow(bits(file.codes[row], file.num_bits).reshape(-1, width), cmap="Greys", vmax=1.4)
        code.set_xticks(np.arange(width + 1) - 0.5, [])
        code.set_yticks(np.arange(file.num_bits // width + 1) - 0.5, [])
        code.grid(color="white", lw=1)
        code.tick_params(length=0)
        code.set_title(f"{file.num_bits} bits", fontsize=8, color=SOFT)
        distance = apart(file, file.codes[row])
        for column, near in enumerate(neighbours(file, row, count)):
            shown = figure.add_subplot(grid[number, 4 + column])
            shown.imshow(photo(near))
            shown.axis("off")
            shown.set_title(
                f"{distance[near]} bit{'' if distance[near] == 1 else 's'} apart",
                fontsize=7,
                color=SOFT,
            )
    save(figure, path)


def losses(path: Path, num_bits: int = 32) -> None:
    """Draws each method's loss of similar and of dissimilar pairs, scaled to a maximum of 1."""
    names = ("ksh", "hashnet", "adsh", "dch", "mmhh")  # Table 1 of the paper
    figure, axes = plt.subplots(1, len(names), figsize=(9.6, 2.1), dpi=125, sharey=True)
    for panel, name in zip(axes, names, strict=True):
        table = np.asarray(
            method_losses.loss_table(methods.objective(name, num_bits), num_bits, 0.26), float
        )
        for curve, color, text in ((1, BLUE, "similar"), (0, ORANGE, "dissimilar")):
            values = table[curve] if table.shape[0] == 2 else table[:, curve]
            panel.plot(values / np.abs(table).max(), color=color, label=text, lw=1.6)
        panel.set_title(name)
        panel.set_xlabel("bits apart")
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("loss, of its largest")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    save(figure, path)


def crops(dataset: data.Dataset, crop_ratio: float, path: Path) -> None:
    """Draws the six regions of encoding on one photo."""
    image = dataset.read(int(dataset.query[0]))
    height, width = image.shape[:2]
    boxes = regions.region_boxes(crop_ratio)
    figure, axes = plt.subplots(1, len(boxes), figsize=(9.6, 1.8), dpi=125)
    for panel, box, name in zip(axes, boxes, regions.NAMES, strict=True):
        panel.imshow(image, alpha=0.35)
        left, top, right, bottom = regions.pixel_boxes(box[None], width, height)[0]
        extent = (left - 0.5, right - 0.5, bottom - 0.5, top - 0.5)
        panel.imshow(image[top:bottom, left:right], extent=extent)
        panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        panel.set_title(name.replace("_", " "))
        panel.axis("off")
    figure.tight_layout()
    save(figure, path)


def save(figure: plt.Figure, path: Path) -> None:
    """Writes a figure as a small PNG with 255 colours."""
    stream = io.BytesIO()
    figure.savefig(stream, facecolor="white")
    plt.close(figure)
    image = Image.open(stream).convert("RGB")
    image.quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes")


def main() -> None:
    """Draws all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    config = run.read_config(options.run)
    settings = config["dataset"]["settings"]
    dataset = data.load(config["dataset"]["name"], None, config["seed"], **settings)
    file = codes_file.load(options.run / "codes" / "database.npz")
    idea(dataset, file, options.out / "idea.png")
    crops(dataset, config["encode"]["crop_ratio"], options.out / "regions.png")
    losses(options.out / "losses.png", config["num_bits"])


if __name__ == "__main__":
    main()
