"""The gallery of the report: some queries with their nearest photos, without and with MCH."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt32
from PIL import Image

from mch_jax.codes import from_bytes
from mch_jax.data import Dataset
from mch_jax.regions import region_name
from mch_jax.report.markup import words
from mch_jax.report.run_files import RunFiles

NUM_QUERIES = 8
NUM_NEAREST = 10
THUMBNAIL = 160  # pixels of the longer side


class Neighbours(NamedTuple):
    """The nearest photos of one query, nearest first.

    Attributes:
      item: Item of each photo in the database's codes file.
      distance: Hamming distance in bits.
      code: Row in the codes file of the photo's nearest code.
    """

    item: Int[np.ndarray, " k"]
    distance: Int[np.ndarray, " k"]
    code: Int[np.ndarray, " k"]


class Answer(NamedTuple):
    """A query of the gallery with its nearest photos.

    Attributes:
      query: Item in the queries' codes file.
      base: Nearest photos by the codes of the whole images.
      mch: Nearest photos by all codes.
    """

    query: int
    base: Neighbours
    mch: Neighbours


def nearest(
    query: UInt32[np.ndarray, " w"],
    packed: UInt32[np.ndarray, "c w"],
    starts: Int[np.ndarray, " n"],
    k: int,
) -> Neighbours:
    """Returns the k nearest items of a query, equal distances in ascending item order.

    Args:
      query: Packed code of the query.
      packed: Packed codes of the items, each item's codes adjacent.
      starts: Row of each item's first code.
      k: Number of items to return; all of them where there are fewer.
    """
    distance = np.bitwise_count(packed ^ query[None]).sum(1, dtype=np.int16)
    item_distance = np.minimum.reduceat(distance, starts)
    item = np.argsort(item_distance, kind="stable")[:k]
    ends = np.append(starts, len(packed))[item + 1]
    spans = zip(starts[item].tolist(), ends.tolist(), strict=True)
    code = np.array([start + distance[start:end].argmin() for start, end in spans], np.int64)
    return Neighbours(item, item_distance[item].astype(np.int32), code)


def relevant(files: RunFiles, query: int, item: Int[np.ndarray, " k"]) -> Bool[np.ndarray, " k"]:
    """Returns True for each item of the database that shares a label with a query."""
    return (files.database.labels[item] & files.query.labels[query]).any(1)


def choose(
    gain: Int[np.ndarray, " m"], eligible: Int[np.ndarray, " e"], num_most: int, num_spread: int
) -> list[int]:
    """Returns the queries to show: those where MCH gains most, then some evenly spread.

    Args:
      gain: Number of relevant items among the nearest under MCH, less that under the base.
      eligible: Queries to choose from, ascending.
      num_most: Number of queries to choose by their gain, earlier ones first among equals.
      num_spread: Number of queries to choose from the others.
    """
    order = eligible[np.argsort(-gain[eligible], kind="stable")]
    most, rest = order[:num_most], np.sort(order[num_most:])
    at = np.linspace(0, len(rest) - 1, min(num_spread, len(rest))).round().astype(int)
    return [*most.tolist(), *rest[at].tolist()]


def pick_answers(files: RunFiles) -> list[Answer]:
    """Searches for every query with the base codes and with all codes, and picks some to show."""
    database, num_bits = files.database, files.database.num_bits
    packed = from_bytes(database.codes, num_bits)
    starts = np.searchsorted(database.item, np.arange(len(database.ids)))
    whole = packed[starts]
    has_relevant = (files.query.labels @ database.labels.sum(0, dtype=np.int64)) > 0
    answers, gain = [], np.zeros(len(files.query.ids), np.int64)
    for row, query in enumerate(from_bytes(files.query.codes, num_bits)):
        base = nearest(query, whole, np.arange(len(starts)), NUM_NEAREST)
        base = base._replace(code=starts[base.item])
        mch = nearest(query, packed, starts, NUM_NEAREST)
        answers.append(Answer(row, base, mch))
        gain[row] = relevant(files, row, mch.item).sum() - relevant(files, row, base.item).sum()
    num_most = NUM_QUERIES // 2 if files.has_several_codes else 0
    chosen = choose(gain, np.flatnonzero(has_relevant), num_most, NUM_QUERIES - num_most)
    return [answers[row] for row in chosen]


class Gallery:
    """Writes thumbnails into the report's folder, each once, and the HTML that shows them.

    Args:
      folder: The report's folder.
      dataset: The run's data set.
      files: What the report reads of the run.
    """

    def __init__(self, folder: Path, dataset: Dataset, files: RunFiles):
        self._folder, self._dataset, self._files = folder, dataset, files
        self._rows = {str(name): row for row, name in enumerate(dataset.ids)}
        self._sizes: dict[int, tuple[int, int]] = {}

    def _thumbnail(self, name: str) -> tuple[str, tuple[int, int]]:
        """Returns the file of a photo's thumbnail and the photo's own width and height."""
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
        """Returns a photo in a square, with a box drawn around one of its regions.

        Args:
          name: Name of the photo.
          alt: Alternative text.
          box: Left, top, right and bottom of the region in pixels; empty to draw none.
        """
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
        """Returns a photo's labels, those shared with the query in bold."""
        names = {i: html.escape(self._dataset.classes[i]) for i in np.flatnonzero(labels)}
        texts = [f"<b>{name}</b>" if shared[i] else name for i, name in names.items()]
        return f'<div class="labels">{", ".join(texts) or "no label"}</div>'

    def _class_names(self, labels: np.ndarray) -> str:
        """Returns a photo's labels as plain text."""
        return words([self._dataset.classes[i] for i in np.flatnonzero(labels)]) or "no label"

    def _neighbour(self, query: int, item: int, distance: int, code: int) -> str:
        """Returns one of a query's nearest photos; the arguments are those of `Neighbours`."""
        database = self._files.database
        name, labels = str(database.ids[item]), database.labels[item]
        shared = labels & self._files.query.labels[query]
        is_first = code == 0 or database.item[code - 1] != item
        box = () if is_first else database.box[code].tolist()
        region = region_name(box, *self._thumbnail(name)[1]) if box else "whole image"
        kind, mark = ("yes", "✓") if shared.any() else ("no", "✕")
        word = "relevant" if shared.any() else "irrelevant"
        bits = f"{distance} bit" if distance == 1 else f"{distance} bits"
        alt = f"{self._class_names(labels)}; {word}, at {bits}, by its {region}"
        return (
            f'<li class="{kind}">{self._cell(name, alt, box)}'
            f'<div class="verdict"><span>{mark}</span><span>{bits}</span></div>'
            f"{self._labels(labels, shared)}</li>"
        )

    def _row(self, title: str, query: int, neighbours: Neighbours) -> str:
        """Returns a query's nearest photos under one choice of codes."""
        found = int(relevant(self._files, query, neighbours.item).sum())
        items = "".join(
            self._neighbour(query, *(int(value) for value in values))
            for values in zip(*neighbours, strict=True)
        )
        return (
            f'<div class="answer"><h4>{title} <span>{found} of {len(neighbours.item)} relevant'
            f'</span></h4><ol class="row" aria-label="{title}: nearest photos">{items}</ol>'
            "</div>"
        )

    def card(self, answer: Answer) -> str:
        """Returns the HTML of one query with its nearest photos under the base and under MCH."""
        query = self._files.query
        name, labels = str(query.ids[answer.query]), query.labels[answer.query]
        rows = self._row("Base", answer.query, answer.base)
        if self._files.has_several_codes:
            rows += self._row("MCH", answer.query, answer.mch)
        image = self._cell(name, f"Query: {self._class_names(labels)}")
        return (
            f'<section class="query"><div class="asked">{image}<div><h3>Query</h3>'
            f"{self._labels(labels, labels)}"
            f'<span class="id">{html.escape(name)}</span></div></div>'
            f"<div>{rows}</div></section>"
        )
