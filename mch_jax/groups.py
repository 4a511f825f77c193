"""Groups of image regions that look alike, in place of labels.

Every region of every training image is a point on the unit sphere: its features, scaled to length
1. Spherical k-means finds the centres of the groups, and a region belongs to the groups of its
nearest centres. An image has the groups of all its regions, multi-hot. Two images are then similar
if a region of one and a region of the other have a nearest centre in common, which is the form
that labels have everywhere else: two images are similar if they share a label.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from mch_jax import batched
from mch_jax.codes import AnyArray

NUM_TURNS = 20  # turns of k-means
_IMAGES = 1024  # images that are compared with the centres at a time
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def to_unit(features: Float[AnyArray, "*m d"]) -> Float[Array, "*m d"]:
    """Returns the features scaled to length 1. Features of zeros stay zeros."""
    features = jnp.asarray(features, jnp.float32)
    length = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(length, 1e-12)


@functools.partial(jax.jit, static_argnames="num_groups")
def centres(
    features: Float[AnyArray, "m d"], num_groups: int, key: Key[Array, ""]
) -> Float[Array, "g d"]:
    """Returns the centres of groups of regions, found by spherical k-means.

    It starts from regions drawn at random. In each turn, every region is assigned to the centre
    with which it has the largest cosine, and each centre moves to the direction of the sum of its
    regions. A centre without regions stays where it is.

    Args:
      features: Features of the regions, at least `num_groups` of them.
      num_groups: Number of groups.
      key: Random key of the regions to start from.
    """
    points = to_unit(features)
    chosen = jax.random.permutation(key, len(points))[:num_groups]

    def turn(_, found):
        nearest = jnp.argmax(_matmul(points, found.T), -1)
        # A product instead of a scatter adds in the same order on every device.
        sums = _matmul(jax.nn.one_hot(nearest, num_groups).T, points)
        is_empty = jnp.all(sums == 0, axis=-1, keepdims=True)
        return jnp.where(is_empty, found, to_unit(sums))

    return jax.lax.fori_loop(0, NUM_TURNS, turn, points[chosen])


def multi_hot(
    features: Float[AnyArray, "n t d"], centres: Float[AnyArray, "g d"], num_nearest: int
) -> UInt8[np.ndarray, "n g"]:
    """Returns the groups of images: those of the nearest centres of any of their regions.

    Args:
      features: Features of the regions of each image.
      centres: Result of `centres`.
      num_nearest: Number of centres, by descending cosine, whose groups a region belongs to.
    """

    @jax.jit
    def block(features):
        _, nearest = jax.lax.top_k(_matmul(to_unit(features), centres.T), num_nearest)
        return jax.nn.one_hot(nearest, len(centres), dtype=jnp.uint8).max((1, 2))

    found = [np.zeros((0, len(centres)), np.uint8)]
    found += [np.asarray(block(part)) for part in batched.split(features, _IMAGES)]
    return np.concatenate(found)
