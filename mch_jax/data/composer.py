"""Generator of the built-in data set: small prints of real photos on a blurred background.

Each scene shows crops of one to four different photos, and its labels are the set of these photos.
A single code cannot describe all of them, which is the situation of the paper's Figure 1. The
photos come with scikit-image and scikit-learn, so nothing is downloaded. Training scenes show crops
of the left halves of the photos, all other scenes crops of the right halves.
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
    """A photo, and how pieces are cut from it.

    Attributes:
      file: Path below the folder of the installed packages.
      area: Left, top, right and bottom of the area to cut from, as fractions of the photo. The
        vertical line through its middle separates the halves.
      zoom: Smallest and largest side of a piece, as fractions of the shorter side of a half.
      tone: Colours for black, mid-grey and white if the photo is grey.
    """

    file: str
    area: tuple[float, float, float, float]
    zoom: tuple[float, float] = (0.7, 1.0)
    tone: tuple[str, str, str] | None = None


_IMAGE, _LEARN = "skimage/data/", "sklearn/datasets/images/"
MAX_SIZE = 4096  # pixels of a side
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

# Photos for the backgrounds. They are not classes, and are blurred and tinted with colours that
# also occur in the other photos.
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
# Fractions of scenes with one, two, three and four prints.
_COUNTS = (0.4, 0.3, 0.2, 0.1)
_MAX_ANGLE = 7.0
# Range of a print's longer side as a fraction of the scene, for a print in a quarter of the scene
# and for a single print in the middle.
_SIDE, _SIDE_MIDDLE = (0.38, 0.48), (0.44, 0.62)
_ASPECTS = (1.0, 1.0, 0.8, 0.75)


class Piece(NamedTuple):
    """One print of a scene.

    Attributes:
      label: Index into CLASSES.
      half: The half of the photo that the piece was cut from, `left` or `right`.
      source: Left, top, right and bottom of the piece in pixels of `PHOTOS[CLASSES[label]]`.
      box: Left, top, right and bottom of the print, including its frame, as fractions of the scene
        and before the rotation.
      angle: Rotation of the print in degrees.
    """

    label: int
    half: str
    source: tuple[float, float, float, float]
    box: tuple[float, float, float, float]
    angle: float


def _open(file: str) -> Image.Image:
    """Opens a photo of an installed package without importing the package."""
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)
    path = pathlib.Path((spec and spec.origin) or package).parent / rest
    if not path.is_file():
        raise ValueError(
            f"scenes: photo {file} is not installed; pip install 'mch_jax[scenes]' brings it"
        )
    with Image.open(path) as image:
        return image.convert("L" if image.mode == "L" else "RGB")


def photo(name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the part of a photo that pieces are cut from, in the colours that they have.

    Args:
      name: A key of PHOTOS.

    Raises:
      ValueError: The package of the photo is not installed.
    """
    chosen = PHOTOS[name]
    image = _open(chosen.file)
    left, top, right, bottom = chosen.area
    width, height = image.size
    part = image.crop((left * width, top * height, right * width, bottom * height))
    pixels = np.asarray(part)
    if pixels.ndim == 3:
        return pixels
    return _colors(chosen.tone or ("#000000", "#808080", "#ffffff"))[pixels]


def _colors(tone: tuple[str, str, str]) -> UInt8[np.ndarray, "256 3"]:
    """Returns the colours of the 256 greys under a tone."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    return np.asarray(ImageOps.colorize(ramp, tone[0], tone[2], tone[1]))[0]


class _Half(NamedTuple):
    """The resized half of a photo.

    Attributes:
      image: The pixels, resized so that pieces can be cut from them quickly.
      box: Left, top, right and bottom of the half in pixels of the photo.
      scale: Factors by which width and height were resized.
    """

    image: Image.Image
    box: tuple[int, int, int, int]
    scale: tuple[float, float]


@functools.cache
def _halves(size: int) -> dict[tuple[int, str], _Half]:
    """Returns the halves of all photos for scenes of one size, by label and half.

    Photos are halved before they are resized, so that no pixel mixes both halves.
    """
    halves = {}
    for label, photo in enumerate(PHOTOS.values()):
        image = _open(photo.file)
        if photo.tone:
            image = Image.fromarray(_colors(photo.tone)[np.asarray(image)])
        left, top, right, bottom = (
            round(edge * side) for edge, side in zip(photo.area, 2 * image.size, strict=True)
        )
        middle = (left + right) // 2
        for name, start, end in (("left", left, middle), ("right", middle, right)):
            width, height = end - start, bottom - top
            scale = min(1.0, 0.8 * size / (min(width, height) * photo.zoom[0]))
            box, shape = (start, top, end, bottom), (round(width * scale), round(height * scale))
            small = image.crop(box).resize(shape, Image.Resampling.LANCZOS)
            halves[label, name] = _Half(small, box, (shape[0] / width, shape[1] / height))
    return halves


@functools.cache
def _backgrounds(size: int) -> tuple[Image.Image, ...]:
    """Returns the background photos, blurred and with stretched contrast."""
    images = []
    for file in _BACKGROUNDS:
        image = _open(_IMAGE + file).convert("L")
        image = image.resize((4 * size, 2 * size), _BILINEAR)
        image = image.filter(ImageFilter.GaussianBlur(size / 28))
        images.append(ImageOps.autocontrast(image, cutoff=2))
    return tuple(images)


@functools.cache
def _background_colors() -> tuple[np.ndarray, ...]:
    return tuple(_colors(tone) for tone in _TONES)


@functools.cache
def _light(size: int) -> np.ndarray:
    """Returns how much darker each pixel becomes towards the corners, in levels of grey."""
    axis = np.linspace(-1, 1, size)
    return 46 * (axis[:, None] ** 2 + axis[None] ** 2) / 2


@functools.lru_cache(4096)
def _card(width: int, height: int, size: int) -> tuple[Image.Image, Image.Image, int]:
    """Returns the mask of a print with rounded corners, that of its shadow, and their margin."""
    margin = size // 16
    shape = (width + 2 * margin, height + 2 * margin)
    # The mask is drawn four times as large, for smooth corners.
    mask = Image.new("L", (4 * shape[0], 4 * shape[1]))
    box = (4 * margin, 4 * margin, 4 * (margin + width) - 1, 4 * (margin + height) - 1)
    ImageDraw.Draw(mask).rounded_rectangle(box, radius=size / 32, fill=255)
    mask = mask.resize(shape, Image.Resampling.BOX)
    shadow = mask.filter(ImageFilter.GaussianBlur(size / 50)).point(lambda v: v * 0.6)
    return mask, shadow, margin


@dataclasses.dataclass(frozen=True)
class Composer:
    """Function from a row to the pixels of its scene.

    A scene depends on `seed`, `size` and its row only.

    Attributes:
      seed: Seed of all scenes.
      size: Side of a scene in pixels.
      num_train: Number of training scenes. Rows below it show left halves of the photos, the others
        right halves.

    Raises:
      ValueError: The packages with the photos are not installed.
    """

    seed: int
    size: int
    num_train: int

    def __post_init__(self):
        _halves(self.size)
        _backgrounds(self.size)

    def _draw(self, row: int) -> tuple[np.random.Generator, np.ndarray]:
        """Draws the classes of a scene; returns them after the generator for the other draws."""
        rng = np.random.default_rng((self.seed, row))
        count = 1 + np.searchsorted(np.cumsum(_COUNTS[:-1]), rng.random(), side="right")
        return rng, rng.permutation(len(CLASSES))[:count]

    def labels(self, row: int) -> UInt8[np.ndarray, " c"]:
        """Returns the multi-hot labels of a scene."""
        labels = np.zeros(len(CLASSES), np.uint8)
        labels[self._draw(row)[1]] = 1
        return labels

    def pieces(self, row: int) -> list[Piece]:
        """Returns the prints of a scene in drawing order: later ones may cover earlier ones."""
        return self._pieces(row, *self._draw(row))

    def _pieces(self, row: int, rng: np.random.Generator, classes: np.ndarray) -> list[Piece]:
        half = "left" if row < self.num_train else "right"
        corners = rng.permutation(4)
        middle = len(classes) == 1 and rng.random() < 0.6
        pieces = []
        for label, corner, draw in zip(
            classes.tolist(), corners.tolist(), rng.random((len(classes), 8)).tolist(), strict=False
        ):
            width, height = _print_size(_SIDE_MIDDLE if middle else _SIDE, *draw[:3])
            quarter = (0.25, 0.25) if middle else (0.5 * (corner % 2), 0.5 * (corner // 2))
            left = quarter[0] + 0.01 + (0.48 - width) * draw[3]
            top = quarter[1] + 0.01 + (0.48 - height) * draw[4]
            pieces.append(
                Piece(
                    label=label,
                    half=half,
                    source=_cut(
                        _halves(self.size)[label, half].box,
                        PHOTOS[CLASSES[label]].zoom,
                        width / height,
                        *draw[5:8],
                    ),
                    box=(left, top, left + width, top + height),
                    angle=rng.uniform(-_MAX_ANGLE, _MAX_ANGLE),
                )
            )
        return pieces

    def __call__(self, row: int) -> UInt8[np.ndarray, "s s 3"]:
        """Returns the pixels of a scene."""
        rng, classes = self._draw(row)
        pieces = self._pieces(row, rng, classes)
        scene = _background(self.size, "left" if row < self.num_train else "right", rng)
        for piece in pieces:
            _paste(scene, self.size, piece)
        return np.asarray(scene)


def _print_size(
    sides: tuple[float, float], longer: float, aspect: float, upright: float
) -> tuple[float, float]:
    """Returns the width and height of a print from three random numbers in [0, 1)."""
    side = sides[0] + (sides[1] - sides[0]) * longer
    other = side * _ASPECTS[int(aspect * len(_ASPECTS))]
    return (side, other) if upright < 0.5 else (other, side)


def _cut(
    bounds: tuple[int, int, int, int],
    zooms: tuple[float, float],
    aspect: float,
    zoom: float,
    across: float,
    down: float,
) -> tuple[float, float, float, float]:
    """Returns the box of a piece within half a photo from three random numbers in [0, 1).

    Args:
      bounds: Left, top, right and bottom of the half, in pixels.
      zooms: Smallest and largest side of the piece, as fractions of the half's shorter side.
      aspect: Width of the piece divided by its height.
      zoom: Random number for the size.
      across: Random number for the horizontal position.
      down: Random number for the vertical position.
    """
    left, top, right, bottom = bounds
    side = min(right - left, bottom - top) * (zooms[0] + (zooms[1] - zooms[0]) * zoom)
    width, height = side * min(1.0, aspect), side * min(1.0, 1 / aspect)
    x = left + (right - left - width) * across
    y = top + (bottom - top - height) * down
    return x, y, x + width, y + height


def _background(size: int, half: str, rng: np.random.Generator) -> Image.Image:
    """Returns a blurred and tinted background that is darker towards its corners."""
    images, colors = _backgrounds(size), _background_colors()
    image = images[rng.integers(len(images))]
    x = rng.uniform(0, size) + (0 if half == "left" else 2 * size)
    y = rng.uniform(0, size)
    soft = image.resize((size, size), _BILINEAR, (x, y, x + size, y + size))
    grey = 70 + 0.5 * np.asarray(soft, np.float32) - _light(size)
    return Image.fromarray(colors[rng.integers(len(colors))][grey.clip(0, 255).astype(np.uint8)])


def _paste(scene: Image.Image, size: int, piece: Piece) -> None:
    """Draws one print and its shadow onto the scene."""
    left, top, right, bottom = (round(size * edge) for edge in piece.box)
    width, height, frame = right - left, bottom - top, max(1, size // 64)
    mask, shadow, margin = _card(width, height, size)
    half = _halves(size)[piece.label, piece.half]
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
