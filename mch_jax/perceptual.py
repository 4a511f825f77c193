"""Perceptual codes: signs of the low frequencies of a small grey photo and of views of it.

A code has one bit per frequency of the discrete cosine transform, without the constant one, so that
brightness and contrast do not matter. Compression, scaling and small overlays flip few bits. A crop
or a rotation flips half of them. A photo therefore has several codes: that of the whole photo and
those of views, which are what a crop or a rotation of the photo would show. An altered copy is then
near to one of them.

A view and its transform are linear, so that all codes are the signs of one matrix product.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

SIDE = 32  # pixels of the small photo, whose sides are stretched to a square
NUM_BITS = 64
_ROUNDING = 1.0  # a contrast of one grey level has coefficients of several hundreds
_POINTS = 32  # points per side at which a view is sampled
# Ratios of width to height for which rotated views are computed; a photo takes the nearest.
ASPECTS = (1 / 2, 9 / 16, 2 / 3, 3 / 4, 1.0, 4 / 3, 3 / 2, 16 / 9, 2.0)


class View(NamedTuple):
    """What a crop or a rotation of a photo shows.

    Attributes:
      side: Side of the crop relative to that of the photo.
      left: Left edge of the crop relative to the photo's width, before the rotation.
      top: Upper edge relative to its height.
      angle: Counter-clockwise rotation around the photo's centre, in degrees.
      is_black: Whether what lies outside the photo is black; otherwise it has the photo's mean.
      is_mirrored: Whether left and right are exchanged.
    """

    side: float = 1.0
    left: float = 0.0
    top: float = 0.0
    angle: float = 0.0
    is_black: bool = False
    is_mirrored: bool = False


_OFFSETS = (0.0, 0.05, 0.1)
WHOLE = View()
VIEWS = (
    WHOLE,
    *(View(0.9, left, top) for top in _OFFSETS for left in _OFFSETS),
    *(View(1.0, 0.0, 0.0, angle, black) for black in (False, True) for angle in (-5.0, 5.0)),
    *(View(0.9, 0.05, 0.05, angle) for angle in (-5.0, 5.0)),
    View(is_mirrored=True),  # the last, so that it can be left out
)


def affine(view: View, aspect: float) -> Float32[np.ndarray, "2 3"]:
    """Returns the map from points of a view to points of the photo.

    Points have coordinates from -1 to 1, to the right and down.

    Args:
      view: The view.
      aspect: Width of the photo divided by its height.
    """
    angle = np.deg2rad(view.angle)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle) / aspect], [np.sin(angle) * aspect, np.cos(angle)]]
    )
    crop = np.array(
        [
            [view.side, 0, 2 * view.left + view.side - 1],
            [0, view.side, 2 * view.top + view.side - 1],
        ]
    )
    mirror = np.diag([-1.0 if view.is_mirrored else 1.0, 1.0, 1.0])
    return (turn @ crop @ mirror).astype(np.float32)


def frequencies() -> Int64[np.ndarray, "q 2"]:
    """Returns the vertical and horizontal frequencies of the bits, lowest sums first."""
    found = [(i, j) for i in range(_POINTS) for j in range(_POINTS) if i + j]
    return np.array(sorted(found, key=lambda pair: (sum(pair), pair))[:NUM_BITS])


def _sampling(view: View, aspect: float) -> Float32[np.ndarray, "p s"]:
    """Returns the matrix that samples a view of a small photo by bilinear interpolation."""
    grid = (np.arange(_POINTS) + 0.5) / _POINTS * 2 - 1
    down, right = (axis.ravel() for axis in np.meshgrid(grid, grid, indexing="ij"))
    across, along = affine(view, aspect) @ np.stack([right, down, np.ones_like(right)])
    across, along = ((axis + 1) / 2 * SIDE - 0.5 for axis in (across, along))
    inside = (np.abs(across - (SIDE - 1) / 2) < SIDE / 2 + 0.5) & (
        np.abs(along - (SIDE - 1) / 2) < SIDE / 2 + 0.5
    )
    left, top = np.floor(across).astype(int), np.floor(along).astype(int)
    matrix, rows = np.zeros((_POINTS**2, SIDE**2), np.float32), np.arange(_POINTS**2)
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (1 - np.abs(across - left - x)) * (1 - np.abs(along - top - y)) * inside
        column = np.clip(top + y, 0, SIDE - 1) * SIDE + np.clip(left + x, 0, SIDE - 1)
        np.add.at(matrix, (rows, column), weight.astype(np.float32))
    return matrix


def transform() -> Float32[np.ndarray, "q p"]:
    """Returns the cosine transform of a view's points at the frequencies of the bits."""
    angles = np.pi * np.arange(_POINTS)[:, None] * (2 * np.arange(_POINTS) + 1) / (2 * _POINTS)
    waves = np.cos(angles)
    return np.stack([np.outer(waves[i], waves[j]).ravel() for i, j in frequencies()]).astype(
        np.float32
    )


@functools.lru_cache(len(ASPECTS))
def _matrix(aspect: float) -> Float32[np.ndarray, "s k"]:
    """Returns the matrix from the pixels of small photos to the coefficients of all views."""
    waves, parts = transform(), []
    for view in VIEWS:
        part = waves @ _sampling(view, aspect)
        if not view.is_black:  # equal to subtracting the photo's mean first
            part -= part.mean(1, keepdims=True)
        parts.append(part)
    return np.concatenate(parts).T.copy()


def nearest_aspects(sizes: np.ndarray) -> Int64[np.ndarray, " n"]:
    """Returns the position in ASPECTS of the ratio that is nearest to that of each photo.

    Args:
      sizes: Width and height of each photo, [n, 2].
    """
    ratio = np.log(sizes[:, 0] / sizes[:, 1])
    return np.abs(ratio[:, None] - np.log(ASPECTS)[None]).argmin(1)


@functools.cache
def _affines() -> Float32[np.ndarray, "k t 2 3"]:
    return np.stack([[affine(view, aspect) for view in VIEWS] for aspect in ASPECTS])


def affines(sizes: np.ndarray) -> Float32[np.ndarray, "n t 2 3"]:
    """Returns the maps from points of each view to points of photos, as `affine` does.

    Args:
      sizes: Width and height of the photos, [n, 2].
    """
    return _affines()[nearest_aspects(sizes)]


def coefficients(
    small: UInt8[np.ndarray, "n s s"], sizes: np.ndarray
) -> Float[np.ndarray, "n t q"]:
    """Returns the cosine coefficients of each view of photos, whose signs are the codes.

    Args:
      small: Grey photos, stretched to SIDE x SIDE pixels.
      sizes: Width and height of the original photos, [n, 2].
    """
    flat = small.reshape(len(small), -1).astype(np.float32)
    result = np.empty((len(small), len(VIEWS) * NUM_BITS), np.float32)
    nearest = nearest_aspects(sizes)
    for number in np.unique(nearest):
        rows = nearest == number
        result[rows] = flat[rows] @ _matrix(ASPECTS[number])
    return result.reshape(-1, len(VIEWS), NUM_BITS)


def codes(small: UInt8[np.ndarray, "n s s"], sizes: np.ndarray) -> UInt8[np.ndarray, "n t bytes"]:
    """Returns the packed codes of each view of photos, that of the whole photo first.

    A bit is 1 if the coefficient is positive, by more than the error of rounding. The bits of a
    photo without any contrast are therefore 0, except those of views with black corners.

    Args:
      small: Grey photos, stretched to SIDE x SIDE pixels.
      sizes: Width and height of the original photos, [n, 2].
    """
    return np.packbits(coefficients(small, sizes) > _ROUNDING, axis=-1, bitorder="little")
