"""The state that the paper's policy sees of an image and one of its regions (Eq. 3)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from mch_jax.codes import Encoding, sign


def states(image: Encoding, region: Encoding) -> Float[Array, "b s"]:
    """Returns h = [f(x); f(x*); b; b*] (Eq. 3), with s = 2 d + 2 q columns.

    Args:
      image: Encodings of the whole images.
      region: Encodings of one region of each image, in the same order.
    """
    signs = [sign(e.logits).astype(jnp.float32) for e in (image, region)]
    return jnp.concatenate([image.features, region.features, *signs], -1)


def width(num_features: int, num_bits: int) -> int:
    """Returns the number of columns of `states`."""
    return 2 * num_features + 2 * num_bits
