"""The page of near-duplicates: photos in groups, to look through and to choose from.

The page needs no network and changes no file. Names of photos can hold any character: they appear
in it only escaped, and without those that would control a terminal.
"""

import hashlib
import html
import importlib.resources
import json
import string
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from mch_jax.data import photos, sources
from mch_jax.duplicates.pairs import Member
from mch_jax.files import whole_file
from mch_jax.files.text import printable
from mch_jax.machine import cores
from mch_jax.training import logs

FOLDER = "thumbnails"
SIDE = 240  # pixels of the longer side of a thumbnail
_MAX_GROUPS = 5000  # groups on the page; the table has all


def _thumbnail(folder: Path, photo: sources.Photo) -> tuple[str, int]:
    """Writes the thumbnail of a photo unless it exists.

    Returns its name and the number of bytes of the photo; no name if the photo cannot be read.

    The name depends on the photo's bytes, so that a page never shows a thumbnail of other bytes.
    """
    try:
        data = sources.content(photo)
        name = f"{hashlib.blake2b(data, digest_size=16).hexdigest()}.jpg"
        if not _is_whole(folder / name):
            image = Image.fromarray(photos.decode_small(data, SIDE, photo.id))
            # To wait for the disk would take most of the time.
            with whole_file(folder / name, durable=False) as temporary:
                image.save(temporary, "JPEG", quality=85)
    except ValueError:  # changed or removed since it was read
        return "", 0
    return name, len(data)


def _is_whole(path: Path) -> bool:
    """Returns whether there is a JPEG that ends as one, which a power failure can prevent."""
    try:
        return path.read_bytes().endswith(b"\xff\xd9")
    except FileNotFoundError:
        return False


def _card(photo: sources.Photo, thumbnail: str, note: str, is_largest: bool) -> str:
    """Returns the HTML of one photo with its checkbox.

    The value of the checkbox is the name as JSON in ASCII, so that every character survives.
    """
    shown = html.escape(printable(photo.id))
    value = html.escape(json.dumps(photo.id))
    picture = (
        f'<img src="{FOLDER}/{thumbnail}" alt="" loading="lazy">' if thumbnail
        else '<span class="gone">no longer readable</span>'
    )  # fmt: skip
    largest = " data-largest" if is_largest else ""
    return (
        f'<li><label><input type="checkbox" value="{value}"{largest}>'
        f'<span class="picture">{picture}</span>'
        f'<span class="name">{shown}</span><span class="note">{note}</span></label></li>'
    )


def _group(number: int, cards: Sequence[str]) -> str:
    return (
        f'<section aria-labelledby="g{number}"><h2 id="g{number}">Group {number}'
        f"<small>{len(cards)} photos</small></h2><ul>{''.join(cards)}</ul></section>"
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def write(
    directory: Path,
    groups: Sequence[Sequence[Member]],
    found: Sequence[sources.Photo],
    sizes: np.ndarray,
    num_damaged: int,
) -> None:
    """Writes index.html and the thumbnails that it shows, completely or not at all.

    Args:
      directory: Directory of the page, in which `thumbnails` belongs to it.
      groups: Groups of near-duplicates.
      found: The photos by their position among the fingerprints.
      sizes: Width and height of each photo in pixels, [n, 2].
      num_damaged: Number of photos that could not be read.
    """
    shown = groups[:_MAX_GROUPS]
    rows = [member.row for group in shown for member in group]
    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor(len(cores()), thread_name_prefix="decode") as pool:
        made = pool.map(lambda row: _thumbnail(folder, found[row]), rows)
        thumbnails = dict(
            zip(rows, logs.progress(made, len(rows), "thumbnails", unit="photos"), strict=True)
        )
    parts = []
    for number, group in enumerate(shown, 1):
        large = [(int(sizes[x.row].prod()), thumbnails[x.row][1]) for x in group]
        largest, cards = large.index(max(large)), []  # most pixels, then most bytes
        for place, member in enumerate(group):
            (width, height), (name, length) = sizes[member.row], thumbnails[member.row]
            note = f"{width} × {height}, {-(-length // 1000):,} kB"
            note += f", {_count(member.distance, 'bit', 'bits')}" if place else ""
            cards.append(_card(found[member.row], name, note, place == largest))
        parts.append(_group(number, cards))
    total = sum(map(len, groups))
    lead = (
        f"{_count(len(groups), 'group', 'groups')} with {total:,} of {len(found):,} photos."
        if groups else f"No near-duplicates among {_count(len(found), 'photo', 'photos')}."
    )  # fmt: skip
    if num_damaged:
        lead += f" {_count(num_damaged, 'photo', 'photos')} could not be read (damaged.jsonl)."
    if len(groups) > len(shown):
        lead += f" The first {len(shown):,} groups are shown; groups.csv has all."
    template = importlib.resources.files("mch_jax.duplicates") / "page.html"
    text = string.Template(template.read_text("utf-8")).substitute(lead=lead, body="".join(parts))
    with whole_file(directory / "index.html") as temporary:
        temporary.write_text(text, "utf-8")
    kept = {name for name, _ in thumbnails.values()}
    for path in folder.iterdir():
        if path.suffix == ".jpg" and path.name not in kept:
            path.unlink(missing_ok=True)
