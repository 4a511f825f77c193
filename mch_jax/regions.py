"""Regions of an image: the five crops of encoding, random crops of training, and resizing.

A box is four float32 numbers (left, top, right, bottom) as fractions of the photo's width and
height. The crop ratio (sigma in the paper) is the ratio of the sides, not of the areas: a region
at 0.5 shows a quarter of the photo.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, Key, UInt8

WHOLE = np.array([0.0, 0.0, 1.0, 1.0], np.float32)
NAMES = ("whole image", "top left", "top right", "bottom left", "bottom right", "middle")


def region_boxes(crop_ratio: float) -> Float[np.ndarray, "6 4"]:
    """Returns the whole image's box, then those of the four corners and the middle (Sec. 4.3)."""
    far, mid = 1 - crop_ratio, (1 - crop_ratio) / 2
    corners = np.array([[0, 0], [far, 0], [0, far], [far, far], [mid, mid]], np.float32)
    return np.concatenate([WHOLE[None], np.concatenate([corners, corners + crop_ratio], 1)])


def random_box(key: Key[Array, ""], crop_ratio: float) -> Float[Array, "4"]:
    """Returns a box of side ratio `crop_ratio` at a uniformly random place."""
    corner = jax.random.uniform(key, (2,)) * (1 - crop_ratio)
    return jnp.concatenate([corner, corner + crop_ratio])


def pixel_boxes(
    boxes: Float[np.ndarray, "*a 4"], width: Array | np.ndarray, height: Array | np.ndarray
) -> Int32[np.ndarray, "*b 4"]:
    """Returns boxes in whole pixels of photos of these sizes; width and height broadcast."""
    scale = np.stack(np.broadcast_arrays(width, height, width, height), -1)
    return np.rint(np.asarray(boxes, np.float64) * scale).astype(np.int32)


def crop(
    images: UInt8[Array, "b h w 3"],
    boxes: Float[Array, "b 4"],
    size: int,
    flip: Bool[Array, " b"] | None = None,
    largest: float = 1.0,
) -> Float[Array, "b size size 3"]:
    """Returns the boxes' content at `size` x `size` pixels, antialiased bilinear, in [0, 255].

    Args:
      images: one photo a row.
      boxes: one region of each photo.
      size: height and width of the result.
      flip: which results to mirror left to right; none when not given.
      largest: side ratio that no box exceeds; below 1 a box costs less, for what lies far from it
        is left out.
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
    """Returns how many pixels around a region its resizing looks at, at the most."""
    return np.ceil(np.maximum(2, 1 / scale + 1))


def crop_same(
    images: UInt8[Array, "b h w 3"], boxes: Float[np.ndarray, "t 4"], size: int
) -> Float[Array, "b t size size 3"]:
    """Returns the same regions of every photo, as `crop` does, in half its time.

    Photos share a region's weights, and pixels far from it are left out.
    """
    count, length, regions = len(images), np.array(images.shape[1:3]), []
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
