"""Pieces of text and HTML that the parts of the report share."""

import html
from collections.abc import Iterable, Sequence

from mch_jax.report.plots import HEIGHT, Plot


def show(value: float, digits: int) -> str:
    """Returns a number with so many decimals, or with one digit where those would all be zero."""
    text = f"{value:.{digits}f}"
    return text if value == 0 or float(text) else f"{value:.0e}"


def data(value: float, digits: int) -> str:
    """Returns a rounded number for people that carries the exact one for machines."""
    return f'<data value="{value!r}">{show(value, digits)}</data>'


def words(items: Sequence[str]) -> str:
    """Returns an enumeration: "a", "a and b", or "a, b and c"."""
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def plain_table(rows: Iterable[tuple[str, str]]) -> str:
    """Returns a table without a head.

    Args:
      rows: Name of each row, and its cells as HTML.
    """
    body = "".join(f'<tr><th scope="row">{name}</th>{cells}</tr>' for name, cells in rows)
    return f'<table class="plain"><tbody>{body}</tbody></table>'


def section(title: str, text: str, parts: Sequence[str], kind: str = "figures") -> str:
    """Returns a section of the page, or nothing for a section without parts.

    Args:
      title: Heading.
      text: Paragraph below it, as HTML.
      parts: Figures or cards, as HTML.
      kind: CSS class of what holds the parts.
    """
    if not parts:
        return ""
    inside = f'<div class="{kind}">{"".join(parts)}</div>'
    return f"<section><h2>{title}</h2><p>{text}</p>{inside}</section>"


def figure(plot: Plot) -> str:
    """Returns the HTML that shows a figure's files, light or dark as the screen is."""
    width, height = (round(96 * side) for side in (plot.width, HEIGHT))
    return (
        f"<figure><h3>{plot.title}</h3><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{plot.name}-dark.png">'
        f'<img src="{plot.name}.png" width="{width}" height="{height}" '
        f'alt="{html.escape(plot.alt)}"></picture><figcaption>{plot.caption}</figcaption></figure>'
    )
