import json

import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny

from mch_jax import codes, data, pipeline, regions
from mch_jax.encoder import Encoder
from mch_jax.files import codes_file
from mch_jax.training import features_file, run

SCENES = {"size": 64, "num_train": 40, "num_database": 24, "num_query": 8}


@pytest.fixture(scope="module")
def scenes():
    return data.audit(data.scenes(**SCENES))[0]


def grid(images):
    """A network: mean colours of 4 x 4 cells, and whether the left is brighter than the right."""
    cells = images.reshape(len(images), 4, images.shape[1] // 4, 4, -1, 3).mean((2, 4)) / 255
    side = cells[:, :, :2].mean((1, 2)) - cells[:, :, 2:].mean((1, 2))
    return np.concatenate([cells.reshape(len(images), -1), side], 1).astype(np.float32)


@pytest.fixture(scope="module")
def path(scenes, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "grid.npz"
    features_file.make(path, scenes, grid, num_views=2, image_size=64, input_size=32)
    return path


def arrays(path):
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def write(path, **changed):
    np.savez(path, **changed)
    return path


def test_make_writes_the_features_of_each_region(scenes, path):
    made = arrays(path)
    assert [p.name for p in path.parent.iterdir()] == ["grid.npz"]
    assert made["regions"].shape == (72, 6, 51)
    assert made["views"].shape == (40, 4, 51)
    photo = Image.fromarray(scenes.read(60))
    for slot, box in enumerate(regions.region_boxes(0.5)):
        small = photo.resize((32, 32), Image.Resampling.BILINEAR, box=tuple(64 * box))
        expected = grid(np.asarray(small)[None])[0]
        np.testing.assert_allclose(made["regions"][60, slot], expected, atol=0.01)
    # A photo's first two views are it and its mirror image.
    np.testing.assert_array_equal(made["views"][:, 0], made["regions"][:40, 0])
    np.testing.assert_allclose(made["views"][:, 1, 48:], -made["views"][:, 0, 48:], atol=2e-3)


def test_rows_are_found_by_name(scenes, path, tmp_path):
    made = arrays(path)
    order = np.random.default_rng(0).permutation(72)
    made |= {"ids": made["ids"][order], "regions": made["regions"][order]}
    straight = features_file.load(path, scenes, 0.5)
    shuffled = features_file.load(write(tmp_path / "a.npz", **made), scenes, 0.5)
    np.testing.assert_array_equal(straight.regions, shuffled.regions)
    np.testing.assert_array_equal(straight.views, shuffled.views)


def test_without_views_the_regions_are_used(scenes, path, tmp_path):
    made = {key: value for key, value in arrays(path).items() if not key.startswith("view")}
    loaded = features_file.load(write(tmp_path / "a.npz", **made), scenes, 0.5)
    assert loaded.views.shape == (40, 7, 51)
    np.testing.assert_array_equal(loaded.views[:, 1], loaded.regions[:40, 0])
    np.testing.assert_array_equal(loaded.views[:, 2:], loaded.regions[:40, 1:])


def test_make_resumes_after_an_interruption(scenes, path, tmp_path):
    calls = []

    def dies(images):
        calls.append(len(images))
        if len(calls) == 60:
            raise KeyboardInterrupt
        return grid(images)

    other = tmp_path / "grid.npz"
    settings = {"num_views": 2, "image_size": 64, "input_size": 32, "batch_size": 4}
    with pytest.raises(KeyboardInterrupt):
        features_file.make(other, scenes, dies, **settings)
    assert not other.exists()
    features_file.make(other, scenes, grid, **settings)
    for name, expected in arrays(path).items():
        np.testing.assert_array_equal(arrays(other)[name], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": np.str_("other/1")}, "is not of the format mch-features/1"),
        ({"regions": None}, r"not of the format .*regions"),
        ({"regions": np.zeros((72, 5, 51), np.float16)}, r"expected \[72, 6, width\]"),
        ({"regions": np.full((72, 6, 51), np.nan)}, "not finite"),
        ({"views": np.zeros((40, 4, 50), np.float16)}, r"expected \[40, views, 51\]"),
        ({"ids": np.array([f"x{i}" for i in range(72)])}, "lacks 72 of 72 photos"),
        ({"crop_ratio": np.float64(0.7)}, "crop_ratio 0.7, the run has encode.crop_ratio 0.5"),
    ],
)
def test_bad_files(scenes, path, tmp_path, change, message):
    made = {k: v for k, v in (arrays(path) | change).items() if v is not None}
    with pytest.raises(ValueError, match=message) as error:
        features_file.load(write(tmp_path / "a.npz", **made), scenes, 0.5)
    assert "\n" not in str(error.value)


def test_no_file_and_damaged_file(scenes, tmp_path):
    with pytest.raises(ValueError, match="does not exist; see docs/backbones.md"):
        features_file.load(tmp_path / "a.npz", scenes, 0.5)
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04" + bytes(99))
    with pytest.raises(ValueError, match="is not of the format"):
        features_file.load(tmp_path / "a.npz", scenes, 0.5)


@pytest.mark.parametrize(("method", "hidden"), [("itq", 0)])
def test_a_whole_run_on_given_features(path, tmp_path, method, hidden):
    config = tiny(method, model__features=str(path), model__hidden=hidden)
    results = pipeline.run_stages(config, tmp_path)
    assert results["base"]["map"] > 0.9 * results["chance_map"]
    assert not (tmp_path / "features").exists()  # nothing was made of AlexNet
    encoder = Encoder.from_run(tmp_path)
    assert not [name for name in encoder.params if name.startswith("conv")]
    this = run.open_run(config, tmp_path)
    packed, _ = encoder.encode_regions(this.region_features[this.dataset.query])
    kept = codes_file.load(tmp_path / "codes" / "query.npz").codes
    np.testing.assert_array_equal(codes.to_bytes(packed[:, 0], 12), kept)
    with pytest.raises(ValueError, match="cannot encode images; pass their features"):
        encoder.encode(np.zeros((1, 64, 64, 3), np.uint8))
    assert json.loads((tmp_path / "config.json").read_text())["model"]["features"] == str(path)


def test_given_features_are_not_trained(path, tmp_path):
    config = tiny(model__features=str(path), base__train_conv=True)
    with pytest.raises(ValueError, match="train_conv is True, expected False where model.features"):
        pipeline.run_stages(config, tmp_path)


@pytest.mark.slow
def test_the_agent_tells_labels_from_given_features(path, tmp_path):
    config = tiny(agent__recipe="cross_fit", agent__num_folds=2, agent__num_steps=2)
    config.agent.evidence_features = str(path)
    results = pipeline.run_stages(config, tmp_path)
    assert results["mch"]["anhc"] >= 1
    encoder, this = Encoder.from_run(tmp_path), run.open_run(config, tmp_path)
    rows = this.dataset.query
    (both,) = this.encoder_batches(rows, len(rows))
    width = this.evidence_features.regions.shape[-1]
    assert both.shape[-1] == this.region_features.shape[-1] + width
    outputs = encoder.region_outputs(both)
    with np.load(tmp_path / "codes" / "query_regions.npz", allow_pickle=False) as saved:
        np.testing.assert_array_equal(codes.to_bytes(outputs.packed, 12), saved["codes"])
        np.testing.assert_allclose(outputs.keep_prob, saved["keep_prob"], rtol=1e-5)
        assert saved["label_logits"].shape == (len(rows), 6, len(this.dataset.classes))
    image = np.zeros((1, 64, 64, 3), np.uint8)
    assert encoder.encode(image).shape == (1, 2)
    with pytest.raises(ValueError, match="agent.evidence_features"):
        encoder.encode_regions(image)


def test_evidence_features_need_the_recipe_that_reads_them(path, tmp_path):
    config = tiny(agent__evidence_features=str(path))
    with pytest.raises(ValueError, match="expected empty where agent.recipe is paper"):
        pipeline.run_stages(config, tmp_path)
