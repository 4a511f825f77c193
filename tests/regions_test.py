import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mch_jax import regions


def photo(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_region_boxes():
    expected = [
        [0, 0, 1, 1],
        [0, 0, 0.5, 0.5],
        [0.5, 0, 1, 0.5],
        [0, 0.5, 0.5, 1],
        [0.5, 0.5, 1, 1],
        [0.25, 0.25, 0.75, 0.75],
    ]
    assert regions.region_boxes(0.5).tolist() == expected
    assert regions.region_boxes(0.5).dtype == np.float32
    assert len(regions.NAMES) == 6


@pytest.mark.parametrize("crop_ratio", [0.3, 0.7, 1.0])
def test_boxes_lie_inside_the_photo(key, crop_ratio):
    keys = jax.random.split(key, 100)
    boxes = jax.vmap(lambda k: regions.random_box(k, crop_ratio))(keys)
    for box in (np.asarray(boxes), regions.region_boxes(crop_ratio)[1:]):
        # Up to the rounding of float32, far below a pixel.
        assert box.min() >= 0
        assert box.max() <= 1 + 1e-6
        np.testing.assert_allclose(box[:, 2:] - box[:, :2], crop_ratio, atol=1e-6)


def test_random_boxes_are_uniform(key):
    boxes = jax.vmap(lambda k: regions.random_box(k, 0.5))(jax.random.split(key, 4000))
    corners = np.asarray(boxes)[:, :2]
    np.testing.assert_allclose(corners.mean(0), 0.25, atol=0.01)
    np.testing.assert_allclose(corners.std(0), 0.5 / 12**0.5, atol=0.01)


def test_pixel_boxes():
    boxes = regions.region_boxes(0.5)
    expected = [[0, 0, 101, 50], [0, 0, 50, 25], [50, 0, 101, 25]]
    pixels = regions.pixel_boxes(boxes, np.array(101), np.array(50))
    assert pixels[:3].tolist() == expected
    assert pixels.dtype == np.int32
    both = regions.pixel_boxes(boxes[None], np.array([[101], [40]]), np.array([[50], [80]]))
    np.testing.assert_array_equal(both[0], pixels)
    assert both[1, 4].tolist() == [20, 40, 40, 80]


@pytest.mark.parametrize("crop_ratio", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize(("width", "height"), [(100, 100), (321, 77), (33, 47)])
def test_region_name(crop_ratio, width, height):
    boxes = regions.pixel_boxes(regions.region_boxes(crop_ratio), np.array(width), np.array(height))
    names = [regions.region_name(box.tolist(), width, height) for box in boxes]
    assert names == list(regions.NAMES)


@pytest.mark.parametrize("size", [20, 80])  # smaller and larger than the regions
def test_crop_equals_pillow(size):
    boxes = np.concatenate(
        [regions.region_boxes(0.5), np.array([[0.13, 0.07, 0.83, 0.77]], np.float32)]
    )
    image = photo()
    height, width = image.shape[:2]
    images = np.broadcast_to(image, (len(boxes), *image.shape))
    result = np.asarray(regions.crop(jnp.asarray(images), jnp.asarray(boxes), size))
    for i, box in enumerate(boxes.astype(float)):
        expected = Image.fromarray(image).resize(
            (size, size),
            Image.Resampling.BILINEAR,
            box=tuple(box * [width, height, width, height]),
        )
        # Pillow rounds twice, after each axis.
        np.testing.assert_allclose(result[i], np.asarray(expected), atol=1.01)


def test_crop_of_the_whole_photo_at_its_size_changes_nothing():
    images = np.stack([photo(32, 32, seed) for seed in range(2)])
    boxes = jnp.tile(jnp.asarray(regions.WHOLE)[None], (2, 1))
    flip = jnp.array([False, True])
    result = np.asarray(regions.crop(jnp.asarray(images), boxes, 32, flip))
    np.testing.assert_allclose(result[0], images[0], atol=1e-3)
    np.testing.assert_allclose(result[1], images[1, :, ::-1], atol=1e-3)


def test_crop_same_equals_crop():
    size = 20
    images = jnp.asarray(np.stack([photo(seed=seed) for seed in range(3)]))
    boxes = np.concatenate(
        [regions.region_boxes(0.5), np.array([[0.13, 0.07, 0.83, 0.77]], np.float32)]
    )
    result = regions.crop_same(images, boxes, size)
    tiled = jnp.tile(jnp.asarray(boxes), (len(images), 1))
    expected = regions.crop(jnp.repeat(images, len(boxes), 0), tiled, size)
    np.testing.assert_allclose(result, expected.reshape(result.shape), atol=0.01)


@pytest.mark.parametrize(("size", "largest"), [(20, 0.7), (80, 0.7), (80, 0.75)])
def test_pixels_far_from_a_box_do_not_matter(size, largest):
    images = jnp.asarray(np.stack([photo(seed=seed) for seed in range(4)]))
    boxes = np.array(
        [[0, 0, 0.7, 0.7], [0.3, 0.3, 1, 1], [0.13, 0.07, 0.83, 0.77], [0.4, 0.1, 0.6, 0.3]],
        np.float32,
    )
    result = regions.crop(images, jnp.asarray(boxes), size, largest=largest)
    expected = regions.crop(images, jnp.asarray(boxes), size)
    np.testing.assert_allclose(result, expected, atol=0.01)
