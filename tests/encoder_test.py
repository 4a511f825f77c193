import dataclasses

import numpy as np
import pytest
import small_run as small

from mch_jax import codes
from mch_jax.encoder import FILE, Encoder
from mch_jax.files import load_arrays, save_arrays
from mch_jax.models import AlexNet


@pytest.fixture(scope="module")
def encoder(small_run):
    return Encoder.from_run(small_run)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, small.SIDE, small.SIDE, 3), np.uint8)


def test_a_saved_encoder_gives_the_same_codes(encoder, images, tmp_path):
    encoder.save(tmp_path / FILE)
    loaded = Encoder.from_run(tmp_path)
    for before, after in zip(
        encoder.encode_regions(images), loaded.encode_regions(images), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_the_first_region_is_the_whole_image(encoder, images):
    packed, keep_prob = encoder.encode_regions(images)
    assert packed.shape == (4, 6, 1)
    np.testing.assert_array_equal(keep_prob[:, 0], 1)
    whole = codes.to_bytes(packed[:, 0], small.NUM_BITS)
    np.testing.assert_array_equal(whole, encoder.encode(images))


def test_the_keep_threshold_decides_and_boxes_are_in_pixels(encoder):
    packed = np.zeros((1, 6, 1), np.uint32)
    keep_prob = np.array([[0.0, 0.4, 0.5, 0.6, 0.0, 1.0]], np.float32)
    code_set = encoder.code_set(packed, keep_prob, np.array([[200, 100]]))
    assert code_set.kept.tolist() == [[True, False, True, True, False, True]]
    assert code_set.box[0, :3].tolist() == [[0, 0, 200, 100], [0, 0, 100, 50], [100, 0, 200, 50]]


def test_without_a_policy_every_code_is_kept(encoder, images, tmp_path):
    params = encoder.params
    Encoder(encoder.model, params, None, {}, 0.5, 0.5, small.SIDE, small.SIDE - 1).save(
        tmp_path / FILE
    )
    loaded = Encoder.from_run(tmp_path)
    assert loaded.policy is None
    packed, keep_prob = loaded.encode_regions(images)
    np.testing.assert_array_equal(packed, encoder.encode_regions(images)[0])
    assert (keep_prob == 1).all()


def test_settings_that_old_files_lack_have_the_default(encoder, images, tmp_path):
    encoder.save(tmp_path / FILE)
    variables, settings = load_arrays(tmp_path / FILE)
    del settings["num_anchors"], settings["num_classes"]
    save_arrays(tmp_path / FILE, variables, settings)
    loaded = Encoder.from_run(tmp_path)
    assert loaded.model == AlexNet(small.NUM_BITS, small.HIDDEN, 1 / 16)
    np.testing.assert_array_equal(loaded.encode(images), encoder.encode(images))


def test_the_type_of_the_convolutions_is_kept(encoder, images, tmp_path):
    model = encoder.model.clone(conv_dtype="bfloat16")
    other = dataclasses.replace(encoder, model=model)
    other.save(tmp_path / FILE)
    assert Encoder.from_run(tmp_path).model == model
    variables, settings = load_arrays(tmp_path / FILE)
    save_arrays(tmp_path / FILE, variables, settings | {"conv_dtype": "float8"})
    with pytest.raises(ValueError, match="conv_dtype is 'float8'"):
        Encoder.from_run(tmp_path)


def test_a_file_of_another_version_is_refused(encoder, tmp_path):
    encoder.save(tmp_path / FILE)
    variables, settings = load_arrays(tmp_path / FILE)
    for changed in ({"more": 1}, {"crop_ratio": None}):
        wrong = {name: value for name, value in (settings | changed).items() if value is not None}
        save_arrays(tmp_path / FILE, variables, wrong)
        with pytest.raises(ValueError, match=r"another version .*run the encode stage again"):
            Encoder.from_run(tmp_path)
