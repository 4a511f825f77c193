"""Whether two small grey photos show the same, up to a shift, scaling, rotation and shear.

Codes compare low frequencies only. Photos whose codes are near are compared here in all of their
pixels: the second is aligned with the first by Gauss-Newton steps on the six numbers of an affine
map (Lucas and Kanade, 1981), with weights that spare what only one of them shows, such as a text
over the photo or black corners. The agreement is then the correlation of what they share. Two skies
over dark ground and two photos with a white frame correlate as well, but only in the means of their
rows and columns; without these, photos of the same scene still do.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from mch_jax.codes import AnyArray

SIDE = 32  # pixels of the small photos
_BLOCK = 8  # pixels of the blocks that are compared one by one
_STEPS = 8
_NOISE = 4.0  # grey levels; below this contrast a block, or the details, say nothing
# Least correlations of photos that show the same.
WHOLE_AGREES, BLOCKS_AGREE, DETAILS_AGREE = 0.96, 0.8, 0.75
EQUAL = 2.0  # mean difference in grey levels of photos that are equal, also without any contrast


def _sampled(
    photo: Float[Array, "h w"], across: Float[Array, " p"], along: Float[Array, " p"]
) -> tuple[Float[Array, " p"], Float[Array, " p"], Float[Array, " p"], Bool[Array, " p"]]:
    """Returns values and slopes of a photo at points, and which of these are inside."""
    across, along = ((axis + 1) * (SIDE / 2) - 0.5 for axis in (across, along))
    last = SIDE - 1
    inside = (across >= 0) & (across <= last) & (along >= 0) & (along <= last)
    across, along = (jnp.clip(axis, 0.0, last - 1e-3) for axis in (across, along))
    left, top = across.astype(jnp.int32), along.astype(jnp.int32)
    x, y = across - left, along - top
    flat, place = photo.ravel(), top * SIDE + left
    nw, ne, sw, se = (flat[place + step] for step in (0, 1, SIDE, SIDE + 1))
    north, south = nw + (ne - nw) * x, sw + (se - sw) * x
    scale = SIDE / 2
    slope = ((ne - nw) * (1 - y) + (se - sw) * y) * scale
    return north + (south - north) * y, slope, (south - north) * scale, inside


def _fit(
    first: Float[Array, " p"], second: Float[Array, " p"], inside: Bool[Array, " p"]
) -> tuple[Float[Array, " p"], Float[Array, " p"], Float[Array, ""]]:
    """Returns residuals and weights of the best gain and offset of `second`, and the gain."""
    weight = inside.astype(jnp.float32)
    residual, gain = first, jnp.float32(1.0)
    for _ in range(2):
        total = weight.sum() + 1e-6
        a, b = first - (weight * first).sum() / total, second - (weight * second).sum() / total
        gain = jnp.clip((weight * a * b).sum() / ((weight * b * b).sum() + 1e-6), 0.2, 5.0)
        residual = a - gain * b
        spread = 1.5 * (inside * jnp.abs(residual)).sum() / (inside.sum() + 1e-6) + 2.0
        weight = inside / (1 + (residual / spread) ** 2)
    return residual, weight, gain


def _correlation(
    first: Float[Array, "*k p"], second: Float[Array, "*k p"], inside: Bool[Array, "*k p"],
    noise: float,
) -> Float[Array, "*k"]:  # fmt: skip
    """Returns the correlation over the last axis. Contrasts far below `noise` give about 0."""
    total = jnp.maximum(inside.sum(-1, keepdims=True), 1)
    a, b = (inside * (x - (inside * x).sum(-1, keepdims=True) / total) for x in (first, second))
    floor = total[..., 0] * noise**2
    squares = ((a * a).sum(-1) + floor) * ((b * b).sum(-1) + floor)
    return (a * b).sum(-1) / jnp.sqrt(squares + 1e-6)


def _blocks(values: Shaped[Array, " p"]) -> Shaped[Array, "k e"]:
    count = SIDE // _BLOCK
    grid = values.reshape(count, _BLOCK, count, _BLOCK).swapaxes(1, 2)
    return grid.reshape(count**2, _BLOCK**2)


def _details(values: Float[Array, " p"], inside: Bool[Array, " p"]) -> Float[Array, " p"]:
    """Returns a photo less the means of its rows and columns, and 0 outside."""
    grid, weight = values.reshape(SIDE, SIDE), inside.reshape(SIDE, SIDE).astype(jnp.float32)
    for _ in range(3):  # in turns, because pixels outside belong to no mean
        for axis in (0, 1):
            total = jnp.maximum(weight.sum(axis, keepdims=True), 1.0)
            grid = grid - (weight * grid).sum(axis, keepdims=True) / total
    return (weight * grid).ravel()


def _scores(
    first: Float[Array, " p"], second: Float[Array, " p"], inside: Bool[Array, " p"]
) -> Float[Array, "3"]:
    """Returns the correlations of the whole, of the blocks (their median) and of the details."""
    parts = _blocks(inside)
    blocks = _correlation(_blocks(first), _blocks(second), parts, _NOISE)
    blocks = jnp.where(parts.sum(-1) >= _BLOCK**2 // 2, blocks, jnp.nan)
    whole = jnp.where(inside.mean() >= 0.5, _correlation(first, second, inside, 1.0), 0.0)
    a, b = _details(first, inside), _details(second, inside)
    contrast = jnp.maximum((a * a).sum(), (b * b).sum()) / jnp.maximum(inside.sum(), 1)
    details = jnp.where(contrast < _NOISE**2, 1.0, _correlation(a, b, inside, 1.0))
    return jnp.stack([whole, jnp.nan_to_num(jnp.nanmedian(blocks)), details])


def _compared(
    first: Float[Array, "h w"], second: Float[Array, "h w"], start: Float[Array, "2 3"]
) -> tuple[Float[Array, "3"], Float[Array, ""]]:
    grid = (jnp.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = (axis.ravel() for axis in jnp.meshgrid(grid, grid, indexing="ij"))
    points, values = jnp.stack([x, y, jnp.ones_like(x)]), first.ravel()

    def moved(affine):
        across, along = affine @ points
        return _sampled(second, across, along)

    def step(_, affine):
        sampled, slope_x, slope_y, inside = moved(affine)
        residual, weight, gain = _fit(values, sampled, inside)
        slopes = jnp.concatenate([slope_x[None] * points, slope_y[None] * points]) * gain
        slopes = jnp.concatenate([slopes, jnp.ones_like(x)[None]])
        weighted = slopes * weight[None]
        normal = weighted @ slopes.T + 0.1 * inside.sum() * jnp.eye(7)
        return affine + jnp.linalg.solve(normal, weighted @ residual)[:6].reshape(2, 3)

    before, _, _, inside = moved(start)
    affine = jax.lax.fori_loop(0, _STEPS, step, start)
    after, _, _, still = moved(affine)
    scores = jnp.maximum(_scores(values, before, inside), _scores(values, after, still))
    return scores, jnp.abs(values - second.ravel()).mean()


@jax.jit
def agreement(
    first: Float[AnyArray, "b h w"],
    second: Float[AnyArray, "b h w"],
    start: Float[AnyArray, "b 2 3"],
) -> tuple[Float[Array, "b 3"], Float[Array, " b"]]:
    """Returns how well pairs of photos agree once the second is aligned with the first.

    Args:
      first: Grey photos of SIDE x SIDE pixels, from 0 to 255.
      second: The photo of each pair that is aligned.
      start: Maps from points of the first to points of the second from which to start, in
        coordinates from -1 to 1.

    Returns:
      The correlation of the whole photos, the median of the correlations of their blocks, and the
      correlation of the photos less the means of their rows and columns (1 where hardly anything
      else is in them), each the larger of the values before and after the alignment; and the mean
      difference of the photos in grey levels without any alignment.
    """
    return jax.vmap(_compared)(first, second, start)


def shows_the_same(
    scores: Float[AnyArray, "b 3"], difference: Float[AnyArray, " b"]
) -> Bool[AnyArray, " b"]:
    """Returns which pairs show the same, by what `agreement` returns."""
    agree = (scores[:, 0] >= WHOLE_AGREES) | (scores[:, 1] >= BLOCKS_AGREE)
    return (agree & (scores[:, 2] >= DETAILS_AGREE)) | (difference <= EQUAL)
