"""Perceptual codes against plain loops, and what alterations do to them."""

import math

import numpy as np
import pytest
from PIL import Image

from mch_jax import perceptual
from mch_jax.perceptual import SIDE, VIEWS, View


def photo(seed, width=160, height=120):
    """A smooth random photo with some structure at every scale."""
    rng = np.random.default_rng(seed)
    layers = sum(
        np.asarray(
            Image.fromarray(rng.normal(0, 255 / k**0.5, (k, k)).astype(np.float32)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
        )
        for k in (3, 5, 9, 17, 33)
    )
    low, high = np.min(layers), np.max(layers)
    return Image.fromarray(((layers - low) / (high - low) * 255).astype(np.uint8))


def small(image):
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def codes_of(*images):
    sizes = np.array([image.size for image in images])
    return perceptual.codes(np.stack([small(image) for image in images]), sizes)


def bits(a, b):
    return int(np.bitwise_count(a ^ b).sum())


def dct(pixels, i, j):
    """One coefficient of the two-dimensional cosine transform, by its definition."""
    n = len(pixels)
    return sum(
        float(pixels[y, x])
        * math.cos(math.pi * i * (2 * y + 1) / (2 * n))
        * math.cos(math.pi * j * (2 * x + 1) / (2 * n))
        for y in range(n)
        for x in range(n)
    )


def test_the_first_code_is_the_signs_of_the_cosine_transform():
    image = photo(0)
    pixels = small(image)
    coefficients = perceptual.coefficients(pixels[None], np.array([image.size]))[0, 0]
    frequencies = perceptual.frequencies()
    expected = [dct(pixels, i, j) for i, j in frequencies.tolist()]
    np.testing.assert_allclose(coefficients, expected, atol=2)
    clear = np.abs(expected) > 2
    assert clear.sum() > 55
    packed = codes_of(image)[0, 0]
    for bit in np.flatnonzero(clear):
        assert (packed[bit // 8] >> (bit % 8)) & 1 == (expected[bit] > 0)


def test_frequencies_are_the_lowest_without_the_constant_one():
    found = [tuple(pair) for pair in perceptual.frequencies().tolist()]
    assert len(set(found)) == perceptual.NUM_BITS
    assert (0, 0) not in found
    largest = max(map(sum, found))
    every = {(i, j) for i in range(SIDE) for j in range(SIDE) if 0 < i + j < largest}
    assert every <= set(found)


def test_codes_do_not_depend_on_the_batch():
    images = [photo(seed, *size) for seed, size in enumerate([(160, 120), (90, 160), (99, 99)])]
    together = codes_of(*images)
    assert together.shape == (3, len(VIEWS), perceptual.NUM_BITS // 8)
    for image, code in zip(images, together, strict=True):
        np.testing.assert_array_equal(codes_of(image)[0], code)


def test_brightness_and_contrast_change_few_bits():
    image = photo(1)
    darker = image.point(lambda value: int(value * 0.6 + 20))
    assert bits(codes_of(image)[0, 0], codes_of(darker)[0, 0]) <= 3


@pytest.mark.parametrize("value", [0, 7, 255])
def test_photos_without_contrast_have_one_code(value):
    plain = Image.new("L", (40, 30), value)
    others = (view for number, view in enumerate(codes_of(plain)[0]) if not VIEWS[number].is_black)
    assert all(not code.any() for code in others)


@pytest.mark.parametrize("corner", [(0, 0), (16, 0), (0, 12), (16, 12), (8, 6)])
def test_a_crop_is_near_to_a_view(corner):
    image = photo(2)
    left, top = corner
    crop = image.crop((left, top, left + 144, top + 108))
    code, views = codes_of(crop)[0, 0], codes_of(image)[0]
    nearest = min(range(len(VIEWS)), key=lambda number: bits(code, views[number]))
    assert bits(code, views[nearest]) <= 12
    view = VIEWS[nearest]
    assert (view.left, view.top) == pytest.approx((left / 160, top / 120))


@pytest.mark.parametrize("size", [(160, 120), (120, 160), (200, 100), (100, 100)])
@pytest.mark.parametrize("angle", [-5, 5])
def test_a_rotation_is_near_to_the_view_of_its_side(size, angle):
    image = photo(3, *size)
    code, views = codes_of(image.rotate(angle, Image.Resampling.BICUBIC))[0, 0], codes_of(image)[0]
    nearest = min(range(len(VIEWS)), key=lambda number: bits(code, views[number]))
    assert bits(code, views[nearest]) <= 12
    assert VIEWS[nearest].angle == angle


def test_a_mirrored_photo_is_near_to_the_last_view_only():
    image = photo(4)
    code = codes_of(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))[0, 0]
    distance = [bits(code, view) for view in codes_of(image)[0]]
    assert VIEWS[-1].is_mirrored
    assert distance[-1] <= 2
    assert min(distance[:-1]) > 12


def test_affine_maps_corners_of_a_crop():
    view = View(0.9, 0.1, 0.05)
    corner = perceptual.affine(view, 1.5) @ np.array([-1.0, 1.0, 1.0])
    np.testing.assert_allclose((corner + 1) / 2, [0.1, 0.95], atol=1e-6)


def test_a_rotation_keeps_right_angles_of_the_photo():
    aspect = 2.0
    turn = perceptual.affine(View(angle=5), aspect)[:, :2]
    square = np.diag([aspect, 1]) @ turn @ np.diag([1 / aspect, 1])
    np.testing.assert_allclose(square @ square.T, np.eye(2), atol=1e-6)


def test_affines_take_the_nearest_ratio():
    sizes = np.array([[320, 240], [100, 900], [1, 1]])
    nearest = perceptual.nearest_aspects(sizes)
    assert [perceptual.ASPECTS[k] for k in nearest] == [4 / 3, 1 / 2, 1.0]
    maps = perceptual.affines(sizes)
    for row, k in enumerate(nearest):
        for number, view in enumerate(VIEWS):
            expected = perceptual.affine(view, perceptual.ASPECTS[k])
            np.testing.assert_array_equal(maps[row, number], expected)
