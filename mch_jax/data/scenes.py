"""The built-in data set: small prints of real photos, strewn over a soft background.

Each scene shows one to four pieces of different photos in different places, and its labels are
the set of the photos: one code can't say all that, the situation of the paper's Figure 1. The
photos come with scikit-image and scikit-learn, so nothing is downloaded. Each photo is halved:
training scenes show pieces of the left halves, all other scenes pieces of the right ones.
"""

import dataclasses
import functools
import importlib.util
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageOps


class Photo(NamedTuple):
    """A photo and where pieces are cut from it.

    Attributes:
      file: path below the folder of the installed packages.
      area: left, top, right, bottom of what is worth showing, as fractions; its middle halves it.
      zoom: smallest and largest side of a piece, as fractions of the half's shorter side.
      tone: colours for black, middle and white, where the photo is grey.
    """

    file: str
    area: tuple[float, float, float, float]
    zoom: tuple[float, float] = (0.7, 1.0)
    tone: tuple[str, str, str] | None = None


_IMAGE, _LEARN = "skimage/data/", "sklearn/datasets/images/"
_WHOLE = (0.0, 0.0, 1.0, 1.0)
PHOTOS = {
    "astronaut": Photo(_IMAGE + "astronaut.png", (0.0, 0.0, 0.9, 0.85)),
    "brick": Photo(_IMAGE + "brick.png", _WHOLE, (0.5, 0.8), ("#2a120c", "#a4553a", "#f0d6c4")),
    "cat": Photo(_IMAGE + "chelsea.png", (0.1, 0.0, 0.95, 0.95)),
    "coffee": Photo(_IMAGE + "coffee.png", (0.1, 0.0, 0.87, 0.95)),
    "coins": Photo(_IMAGE + "coins.png", (0.02, 0.0, 0.98, 1.0), (0.5, 0.8)),
    "flower": Photo(_LEARN + "flower.jpg", (0.22, 0.1, 0.76, 0.9)),
    "galaxies": Photo(_IMAGE + "hubble_deep_field.jpg", _WHOLE, (0.3, 0.5)),
    "grass": Photo(_IMAGE + "grass.png", _WHOLE, (0.5, 0.8), ("#101c08", "#5f7d35", "#eef2c8")),
    "gravel": Photo(_IMAGE + "gravel.png", _WHOLE, (0.5, 0.8), ("#1d1a17", "#8f8a84", "#f6f1ea")),
    "motorcycle": Photo(_IMAGE + "motorcycle_left.png", (0.12, 0.2, 0.98, 0.98)),
    "pagoda": Photo(_LEARN + "china.jpg", (0.0, 0.0, 0.64, 0.95)),
    "retina": Photo(_IMAGE + "retina.jpg", _WHOLE, (0.85, 1.0)),
    "rocket": Photo(_IMAGE + "rocket.jpg", (0.1, 0.42, 0.91, 1.0), (0.85, 1.0)),
    "tissue": Photo(_IMAGE + "ihc.png", _WHOLE, (0.6, 0.9)),
}
CLASSES = tuple(PHOTOS)

# Backgrounds: photos that are no class, out of focus, in the colours of the others.
_BACKGROUNDS = ("text.png", "page.png", "moon.png", "camera.png", "cell.png", "clock_motion.png")
_TONES = (
    ("#16302f", "#3f6d68", "#a9c4b8"),  # the leaves behind the flower
    ("#141c33", "#42557f", "#aab8d0"),  # the sky behind the rocket
    ("#3a2116", "#8a5f43", "#d9bfa0"),  # the coffee's table
    ("#4a4640", "#a59b8c", "#ece5d8"),  # paper
    ("#2d3324", "#77805f", "#cfd3b8"),  # trees below the pagoda
    ("#3b2a33", "#8d6f7c", "#dcc8cd"),  # the tissue's stain
    ("#26282d", "#6b7078", "#c5c9ce"),  # slate
)
_BILINEAR = Image.Resampling.BILINEAR
_PAPER = (250, 247, 240)
# Shares of scenes with one, two, three and four prints.
_COUNTS = (0.4, 0.3, 0.2, 0.1)
_MAX_ANGLE = 7.0
# Longer side of a print, as a fraction of the scene: in a quarter, or alone in the middle.
_SIDE, _SIDE_MIDDLE = (0.38, 0.48), (0.44, 0.62)
_ASPECTS = (1.0, 1.0, 0.8, 0.75)


class Piece(NamedTuple):
    """One print of a scene.

    Attributes:
      label: index into CLASSES.
      part: the half of the photo that it was cut from, `left` or `right`.
      source: left, top, right, bottom of the cut in pixels of the photo, `PHOTOS[CLASSES[label]]`.
      place: left, top, right, bottom of the print with its frame in the scene, as fractions,
        before it is turned.
      angle: degrees by which the print is turned.
    """

    label: int
    part: str
    source: tuple[float, float, float, float]
    place: tuple[float, float, float, float]
    angle: float


def _open(file: str) -> Image.Image:
    """Opens a photo that an installed package brings, without importing the package."""
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)
    path = pathlib.Path((spec and spec.origin) or package).parent / rest
    if not path.is_file():
        raise ValueError(
            f"scenes: photo {file} is not installed; pip install 'mch_jax[scenes]' brings it"
        )
    with Image.open(path) as image:
        return image.convert("L" if image.mode == "L" else "RGB")


def _table(tone: tuple[str, str, str]) -> UInt8[np.ndarray, "256 3"]:
    """Returns the colours that a tone gives the 256 greys."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    return np.asarray(ImageOps.colorize(ramp, tone[0], tone[2], tone[1]))[0]


class _Half(NamedTuple):
    """Half of a photo: small enough to cut from quickly, its place in the photo, its scale."""

    image: Image.Image
    box: tuple[int, int, int, int]
    scale: tuple[float, float]


@functools.cache
def _halves(size: int) -> dict[tuple[int, str], _Half]:
    """Loads the photos for scenes of one size; halved first, so that scaling blends no halves."""
    halves = {}
    for label, photo in enumerate(PHOTOS.values()):
        image = _open(photo.file)
        if photo.tone:
            image = Image.fromarray(_table(photo.tone)[np.asarray(image)])
        left, top, right, bottom = (
            round(edge * side) for edge, side in zip(photo.area, 2 * image.size, strict=True)
        )
        middle = (left + right) // 2
        for part, start, end in (("left", left, middle), ("right", middle, right)):
            width, height = end - start, bottom - top
            scale = min(1.0, 0.8 * size / (min(width, height) * photo.zoom[0]))
            box, shape = (start, top, end, bottom), (round(width * scale), round(height * scale))
            small = image.crop(box).resize(shape, Image.Resampling.LANCZOS)
            halves[label, part] = _Half(small, box, (shape[0] / width, shape[1] / height))
    return halves


@functools.cache
def _backgrounds(size: int) -> tuple[Image.Image, ...]:
    """Loads the background photos, blurred and evened out in contrast."""
    images = []
    for file in _BACKGROUNDS:
        image = _open(_IMAGE + file).convert("L")
        image = image.resize((4 * size, 2 * size), _BILINEAR)
        image = image.filter(ImageFilter.GaussianBlur(size / 28))
        images.append(ImageOps.autocontrast(image, cutoff=2))
    return tuple(images)


@functools.cache
def _tables() -> tuple[np.ndarray, ...]:
    return tuple(_table(tone) for tone in _TONES)


@functools.cache
def _light(size: int) -> np.ndarray:
    """Returns what the corners are darker by, in greys."""
    axis = np.linspace(-1, 1, size)
    return 46 * (axis[:, None] ** 2 + axis[None] ** 2) / 2


@functools.lru_cache(4096)
def _card(width: int, height: int, size: int) -> tuple[Image.Image, Image.Image, int]:
    """Returns the masks of a print with rounded corners and of its shadow, and their margin."""
    margin = size // 16
    shape = (width + 2 * margin, height + 2 * margin)
    # Drawn four times as large, for smooth corners.
    mask = Image.new("L", (4 * shape[0], 4 * shape[1]))
    box = (4 * margin, 4 * margin, 4 * (margin + width) - 1, 4 * (margin + height) - 1)
    ImageDraw.Draw(mask).rounded_rectangle(box, radius=size / 32, fill=255)
    mask = mask.resize(shape, Image.Resampling.BOX)
    shadow = mask.filter(ImageFilter.GaussianBlur(size / 50)).point(lambda v: v * 0.6)
    return mask, shadow, margin


@dataclasses.dataclass(frozen=True)
class Composer:
    """Composes scenes; calling it with a row gives the pixels.

    A scene is a function of `seed`, `size` and its row alone.

    Attributes:
      seed: of all that is drawn.
      size: side of a scene in pixels.
      num_train: rows below it show left halves of the photos, the others right ones.

    Raises:
      ValueError: the packages that bring the photos aren't installed.
    """

    seed: int
    size: int
    num_train: int

    def __post_init__(self):
        _halves(self.size)
        _backgrounds(self.size)

    def _draw(self, row: int) -> tuple[np.random.Generator, np.ndarray]:
        """Returns the row's generator, after drawing the classes of its one to four pieces."""
        rng = np.random.default_rng((self.seed, row))
        count = 1 + np.searchsorted(np.cumsum(_COUNTS[:-1]), rng.random(), side="right")
        return rng, rng.permutation(len(CLASSES))[:count]

    def labels(self, row: int) -> UInt8[np.ndarray, " c"]:
        """Returns which classes the scene shows."""
        labels = np.zeros(len(CLASSES), np.uint8)
        labels[self._draw(row)[1]] = 1
        return labels

    def pieces(self, row: int) -> list[Piece]:
        """Returns the scene's prints: what each shows and where it lies, lowest first."""
        return self._pieces(row, *self._draw(row))

    def _pieces(self, row: int, rng: np.random.Generator, classes: np.ndarray) -> list[Piece]:
        part = "left" if row < self.num_train else "right"
        corners = rng.permutation(4)
        middle = len(classes) == 1 and rng.random() < 0.6
        pieces = []
        for label, corner, draw in zip(
            classes.tolist(), corners.tolist(), rng.random((len(classes), 8)).tolist(), strict=False
        ):
            width, height = _print_size(_SIDE_MIDDLE if middle else _SIDE, *draw[:3])
            slot = (0.25, 0.25) if middle else (0.5 * (corner % 2), 0.5 * (corner // 2))
            left = slot[0] + 0.01 + (0.48 - width) * draw[3]
            top = slot[1] + 0.01 + (0.48 - height) * draw[4]
            pieces.append(
                Piece(
                    label=label,
                    part=part,
                    source=_cut(
                        _halves(self.size)[label, part].box,
                        PHOTOS[CLASSES[label]].zoom,
                        width / height,
                        *draw[5:8],
                    ),
                    place=(left, top, left + width, top + height),
                    angle=rng.uniform(-_MAX_ANGLE, _MAX_ANGLE),
                )
            )
        return pieces

    def __call__(self, row: int) -> UInt8[np.ndarray, "s s 3"]:
        """Returns the scene's pixels."""
        rng, classes = self._draw(row)
        pieces = self._pieces(row, rng, classes)
        scene = _background(self.size, "left" if row < self.num_train else "right", rng)
        for piece in pieces:
            _paste(scene, self.size, piece)
        return np.asarray(scene)


def _print_size(
    sides: tuple[float, float], longer: float, aspect: float, upright: float
) -> tuple[float, float]:
    """Turns three numbers from 0 to 1 into a print's width and height."""
    side = sides[0] + (sides[1] - sides[0]) * longer
    other = side * _ASPECTS[int(aspect * len(_ASPECTS))]
    return (side, other) if upright < 0.5 else (other, side)


def _cut(
    room: tuple[int, int, int, int],
    zooms: tuple[float, float],
    aspect: float,
    zoom: float,
    across: float,
    down: float,
) -> tuple[float, float, float, float]:
    """Turns three numbers from 0 to 1 into the part of half a photo that a print shows."""
    left, top, right, bottom = room
    side = min(right - left, bottom - top) * (zooms[0] + (zooms[1] - zooms[0]) * zoom)
    width, height = side * min(1.0, aspect), side * min(1.0, 1 / aspect)
    x = left + (right - left - width) * across
    y = top + (bottom - top - height) * down
    return x, y, x + width, y + height


def _background(size: int, part: str, rng: np.random.Generator) -> Image.Image:
    """Returns a soft background in the tones of one photo, darker towards its corners."""
    images, tables = _backgrounds(size), _tables()
    image = images[rng.integers(len(images))]
    x = rng.uniform(0, size) + (0 if part == "left" else 2 * size)
    y = rng.uniform(0, size)
    soft = image.resize((size, size), _BILINEAR, (x, y, x + size, y + size))
    grey = 70 + 0.5 * np.asarray(soft, np.float32) - _light(size)
    return Image.fromarray(tables[rng.integers(len(tables))][grey.clip(0, 255).astype(np.uint8)])


def _paste(scene: Image.Image, size: int, piece: Piece) -> None:
    """Lays one print and its shadow on the scene."""
    left, top, right, bottom = (round(size * edge) for edge in piece.place)
    width, height, frame = right - left, bottom - top, max(1, size // 64)
    mask, shadow, margin = _card(width, height, size)
    half = _halves(size)[piece.label, piece.part]
    x, y = half.box[:2]
    box = (
        (piece.source[0] - x) * half.scale[0],
        (piece.source[1] - y) * half.scale[1],
        (piece.source[2] - x) * half.scale[0],
        (piece.source[3] - y) * half.scale[1],
    )
    shape = (width - 2 * frame, height - 2 * frame)
    card = Image.new("RGB", mask.size, _PAPER)
    card.paste(half.image.resize(shape, _BILINEAR, box), (margin + frame, margin + frame))
    card.putalpha(mask)
    card = card.rotate(piece.angle, _BILINEAR)
    x, y = left - margin, top - margin
    scene.paste((12, 10, 8), (x + frame // 2, y + frame), shadow.rotate(piece.angle, _BILINEAR))
    scene.paste(card, (x, y), card)
