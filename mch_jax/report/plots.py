"""What the figures share: colours, axes, legends, and how a figure is drawn into a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


class Scheme(NamedTuple):
    """Colours of a figure, distinguishable with any kind of colour vision and in grey.

    Attributes:
      suffix: Ending of the file name, before `.png`.
      ink: Text and lines that matter.
      soft: Labels of the axes.
      grid: Lines of the grid.
      base: The base model.
      mch: MCH, and regions worth keeping.
      bad: Regions better left out.
    """

    suffix: str
    ink: str
    soft: str
    grid: str
    base: str
    mch: str
    bad: str


# For a light and for a dark screen.
SCHEMES = (
    Scheme("", "#1f2328", "#5a616b", "#e6e3dc", "#5f6875", "#1f66ad", "#a8430d"),
    Scheme("-dark", "#e8e6e1", "#a5abb4", "#363b42", "#a3adba", "#7fb6f0", "#f0a06a"),
)


class Plot(NamedTuple):
    """A figure of the report, with one pair of axes.

    Attributes:
      name: Name of its files, without the ending.
      title: Heading above it.
      alt: Alternative text, which says what the figure shows.
      caption: Text below it.
      draw: Draws it on axes with the colours of a scheme.
      width: Width in inches; the height is HEIGHT.
    """

    name: str
    title: str
    alt: str
    caption: str
    draw: Callable[[Axes, Scheme], None]
    width: float = 3.4


HEIGHT = 2.4  # inches


def style(axes: Axes, scheme: Scheme) -> None:
    """Removes from axes what is not needed to read them, and sets their colours."""
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
    """Adds a legend that names the lines in their own colours."""
    axes.legend(frameon=False, fontsize=8.5, labelcolor="linecolor", handlelength=1.4, **kwargs)


def power_of_ten(value: float, _: int) -> str:
    """Returns the label of a tick on a logarithmic axis, as matplotlib's FuncFormatter takes it."""
    exponent = round(np.log10(value))
    return f"{value:,.0f}" if exponent < 4 else f"$10^{{{exponent}}}$"


def save(plot: Plot, folder: Path) -> None:
    """Draws a figure into a folder, once for each scheme."""
    for scheme in SCHEMES:
        figure = Figure((plot.width, HEIGHT), dpi=240, layout="constrained")
        axes = figure.add_subplot()
        plot.draw(axes, scheme)
        style(axes, scheme)
        figure.savefig(folder / f"{plot.name}{scheme.suffix}.png", transparent=True)
