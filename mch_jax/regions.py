"""Regions of an image: the five crops of encoding, random crops for training, and resizing.

A box is four float32 numbers (left, top, right, bottom), in fractions of the image's width and
height. The crop ratio (sigma in the paper) is the ratio of the sides, not of the areas: a region
with ratio 0.5 shows a quarter of the image.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Key, UInt8

from mch_jax.codes import AnyArray

WHOLE = np.array([0.0, 0.0, 1.0, 1.0], np.float32)
NAMES = ("whole image", "top left", "top right", "bottom left", "bottom right", "middle")
NUM_REGIONS = len(NAMES)


def region_boxes(crop_ratio: float) -> Float[np.ndarray, "6 4"]:
    """Returns the boxes of the regions in the order of `NAMES` (Sec. 4.3)."""
    far, mid = 1 - crop_ratio, (1 - crop_ratio) / 2
    corners = np.array([[0, 0], [far, 0], [0, far], [far, far], [mid, mid]], np.float32)
    return np.concatenate([WHOLE[None], np.concatenate([corners, corners + crop_ratio], 1)])


def random_box(key: Key[Array, ""], crop_ratio: float) -> Float[Array, "4"]:
    """Returns a box with side ratio `crop_ratio` at a uniformly random position."""
    corner = jax.random.uniform(key, (2,)) * (1 - crop_ratio)
    return jnp.concatenate([corner, corner + crop_ratio])


def pixel_boxes(
    boxes: Float[np.ndarray, "*a 4"], width: AnyArray, height: AnyArray
) -> Int32[np.ndarray, "*b 4"]:
    """Returns boxes in whole pixels.

    Args:
      boxes: Boxes in fractions of the images' sides.
      width: Widths of the images in pixels; they broadcast against the boxes.
      height: Heights of the images in pixels.
    """
    scale = np.stack(np.broadcast_arrays(width, height, width, height), -1)
    return np.rint(np.asarray(boxes, np.float64) * scale).astype(np.int32)


def region_name(box: Sequence[int], width: int, height: int) -> str:
    """Returns the entry of NAMES that describes a box of `pixel_boxes`.

    Args:
      box: left, top, right, bottom in pixels.
      width: Width of the photo in pixels.
      height: Height of the photo in pixels.
    """
    left, top, right, bottom = box
    if (right - left, bottom - top) == (width, height):
        return NAMES[0]
    to_right, to_down = left + right - width, top + bottom - height  # twice the centre's offset
    if abs(to_right) <= 2 and abs(to_down) <= 2:  # the error that rounding to pixels can leave
        return NAMES[5]
    return NAMES[1 + (to_right > 0) + 2 * (to_down > 0)]


def crop(
    images: UInt8[Array, "b h w 3"],
    boxes: Float[Array, "b 4"],
    size: int,
    flip: Bool[Array, " b"] | None = None,
    largest: float = 1.0,
) -> Float[Array, "b size size 3"]:
    """Returns one region of each image, resized by antialiased bilinear interpolation.

    Args:
      images: Images with values in [0, 255].
      boxes: Box of one region of each image.
      size: Height and width of the result in pixels.
      flip: Which results to mirror left to right. Defaults to none.
      largest: Side ratio that no box exceeds. Below 1 the crop is faster, since pixels far from the
        box are left out.

    Returns:
      Regions with values in [0, 255].
    """
    length = np.array(images.shape[1:3])
    reach = _reach(size / (largest * length))
    window = np.minimum(np.ceil(largest * length) + 2 * reach, length)

    def one(image, box):
        origin, span = jnp.stack([box[1], box[0]]), jnp.stack([box[3] - box[1], box[2] - box[0]])
        scale = size / (span * length.astype(np.float32))
        low = jnp.floor(origin * length) - reach
        low = jnp.clip(low, 0, length - window).astype(jnp.int32)
        part = jax.lax.dynamic_slice(image, (*low, 0), (*window.astype(int), 3))
        return jax.image.scale_and_translate(
            part.astype(jnp.float32),
            (size, size, 3),
            (0, 1),
            scale,
            (low - origin * length) * scale,
            "linear",
        )

    regions = jax.vmap(one)(images, boxes)
    if flip is not None:
        regions = jnp.where(flip[:, None, None, None], regions[:, :, ::-1], regions)
    return jnp.clip(regions, 0, 255)


def _reach(scale: Float[np.ndarray, "2"]) -> Float[np.ndarray, "2"]:
    """Returns the maximum number of pixels around a region that its resizing reads, by axis."""
    return np.ceil(np.maximum(2, 1 / scale + 1))


def crop_same(
    images: UInt8[Array, "b h w 3"], boxes: Float[np.ndarray, "t 4"], size: int
) -> Float[Array, "b t size size 3"]:
    """Returns the same regions of every image, as `crop` does, in half its time.

    All images share a region's interpolation weights, and pixels far from it are left out.

    Args:
      images: Images with values in [0, 255].
      boxes: Boxes of the regions.
      size: Height and width of the results in pixels.
    """
    count, length, regions = images.shape[0], np.array(images.shape[1:3]), []
    for left, top, right, bottom in np.asarray(boxes, np.float64):
        start, end = np.array([top, left]) * length, np.array([bottom, right]) * length
        scale = size / (end - start)
        reach = _reach(scale)
        low = np.maximum(np.floor(start - reach), 0).astype(int)
        high = np.minimum(np.ceil(end + reach), length).astype(int)
        part = images[:, low[0] : high[0], low[1] : high[1]].astype(jnp.float32)
        region = jax.image.scale_and_translate(
            part,
            (count, size, size, 3),
            (1, 2),
            jnp.asarray(scale, jnp.float32),
            jnp.asarray((low - start) * scale, jnp.float32),
            "linear",
        )
        regions.append(region)
    return jnp.clip(jnp.stack(regions, 1), 0, 255)
