"""The agreement of photos that are equal, altered, or different."""

import jax.numpy as jnp
import numpy as np
import pytest
from perceptual_test import photo
from PIL import Image, ImageDraw

from mch_jax import alignment

START = np.eye(2, 3, dtype=np.float32)


def small(image):
    side = alignment.SIDE
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), np.float32)


def compare(first, second, start=START):
    """Returns scores, difference and decision for one pair."""
    scores, difference = alignment.agreement(small(first)[None], small(second)[None], start[None])
    same = alignment.shows_the_same(scores, difference)
    return np.asarray(scores[0]), float(difference[0]), bool(same[0])


def shift(image, right, down):
    width, height = image.size
    return image.crop((right, down, width - 16 + right, height - 12 + down))


def test_a_photo_agrees_with_itself():
    image = photo(0)
    scores, difference, same = compare(image, image)
    np.testing.assert_allclose(scores, 1, atol=0.05)
    assert difference == 0
    assert same


@pytest.mark.parametrize("alter", [
    lambda image: image.crop((6, 5, 154, 116)),
    lambda image: image.rotate(4, Image.Resampling.BICUBIC),
    lambda image: image.point(lambda value: int(value * 0.7 + 30)),
    lambda image: shift(image, 0, 12),
])  # fmt: skip
def test_an_altered_copy_agrees_from_either_side(alter):
    image = photo(1)
    assert compare(image, alter(image))[2]
    assert compare(alter(image), image)[2]


def test_aligning_raises_the_agreement_of_a_crop():
    image = photo(2)
    crop = image.crop((6, 5, 154, 116))
    before = np.corrcoef(small(image).ravel(), small(crop).ravel())[0, 1]
    assert compare(image, crop)[0][0] > max(0.95, before)


def test_a_bar_over_a_sixth_leaves_the_blocks_in_agreement():
    image = photo(3)
    covered = image.copy()
    ImageDraw.Draw(covered).rectangle((0, 100, 160, 120), fill=255)
    scores, _, same = compare(image, covered)
    assert scores[1] > alignment.BLOCKS_AGREE
    assert same


def test_different_photos_do_not_agree():
    first, second = zip(*[(i, j) for i in range(8) for j in range(i)], strict=True)
    images = np.stack([small(photo(seed)) for seed in range(8)])
    starts = np.tile(START, (len(first), 1, 1))
    scores = alignment.agreement(images[np.array(first)], images[np.array(second)], starts)
    assert not np.asarray(alignment.shows_the_same(*scores)).any()


def test_photos_without_contrast_agree_if_they_are_equal():
    grey, other = Image.new("L", (40, 30), 100), Image.new("L", (40, 30), 110)
    assert compare(grey, grey)[2]
    assert compare(grey, grey.point(lambda value: value + 1))[2]
    scores, difference, same = compare(grey, other)
    assert difference == 10
    assert np.isfinite(scores).all()
    assert not same


def test_no_overlap_is_no_agreement():
    away = np.array([[1, 0, 5], [0, 1, 5]], np.float32)
    scores, _, same = compare(photo(5), photo(6), away)
    assert np.isfinite(scores).all()
    assert not same


def test_the_correlation_is_that_of_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 50, (2, 3, 40)).astype(np.float32)
    inside = rng.random((3, 40)) < 0.7
    found = alignment._correlation(jnp.asarray(a), jnp.asarray(b), jnp.asarray(inside), 0.0)
    for row in range(3):
        expected = np.corrcoef(a[row][inside[row]], b[row][inside[row]])[0, 1]
        np.testing.assert_allclose(found[row], expected, atol=1e-4)


def sky(seed):
    """Returns a bright sky over dark ground, with a faint photo in both."""
    step = np.where(np.arange(120) < 70, 200.0, 40.0)[:, None]
    faint = np.asarray(photo(seed).convert("L"), np.float32)
    return Image.fromarray((step + 0.15 * (faint - faint.mean())).clip(0, 255).astype(np.uint8))


def framed(seed):
    """Returns a photo with a white frame."""
    image = Image.new("L", (160, 120), 255)
    image.paste(photo(seed).convert("L").resize((128, 96)), (16, 12))
    return image


@pytest.mark.parametrize("make", [sky, framed])
def test_photos_that_share_only_a_horizon_or_a_frame_do_not_agree(make):
    scores, _, same = compare(make(1), make(2))
    assert scores[0] > alignment.WHOLE_AGREES or scores[1] > alignment.BLOCKS_AGREE
    assert scores[2] < alignment.DETAILS_AGREE
    assert not same
    assert compare(make(1), make(1).crop((6, 5, 154, 116)))[2]


def test_rows_that_are_all_a_photo_has_still_agree():
    stripes = np.repeat(np.where(np.arange(6) % 2, 220, 40), 20)[:, None]
    image = Image.fromarray(np.broadcast_to(stripes, (120, 160)).astype(np.uint8))
    scores, _, same = compare(image, image.crop((0, 0, 144, 116)))
    assert scores[2] == 1
    assert same
