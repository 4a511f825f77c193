"""Photos, labels and models that change between the stages of a run are noticed or used."""

import json
import shutil

import jax
import numpy as np
import pytest
from labelled_folder import encoded, picture
from tiny_run import read, tiny

from mch_jax import pipeline
from mch_jax.evaluation import rival_table, sweep
from mch_jax.files import load_arrays, save_arrays

NUM_QUERY, NUM_TRAIN, NUM_REST = 6, 16, 10
TOTAL = NUM_QUERY + NUM_TRAIN + NUM_REST
REPLACED = range(NUM_QUERY + NUM_TRAIN, TOTAL, 3)  # database photos that are not trained on


def write_photo(root, row, seed):
    (root / f"{row:02d}.png").write_bytes(encoded(picture(seed, 64, 64), "PNG"))


def write_labels(root, flipped=None):
    splits = ["query"] * NUM_QUERY + ["train"] * NUM_TRAIN + ["database"] * NUM_REST
    labels = np.arange(TOTAL) % 2
    if flipped is not None:
        labels[flipped] = 1 - labels[flipped]
    lines = [
        f"{row:02d}.png,{split},{label},{1 - label}"
        for row, (split, label) in enumerate(zip(splits, labels, strict=True))
    ]
    (root / "labels.csv").write_text("\n".join(["file,split,a,b", *lines]) + "\n")


def config(root, cache="cache"):
    result = tiny(agent__num_steps=2)
    result.dataset.name, result.dataset.root, result.dataset.settings = "folder", str(root), {}
    result.cache_dir = str(root.parent / cache)
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder that has the photos in `photos` and a finished run in `run`."""
    place = tmp_path_factory.mktemp("stale")
    (place / "photos").mkdir()
    for row in range(TOTAL):
        write_photo(place / "photos", row, row)
    write_labels(place / "photos")
    pipeline.run_stages(config(place / "photos"), place / "run")
    return place


@pytest.fixture
def root(made):
    """The folder of photos, whose changes are undone after the test."""
    root = made / "photos"
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    yield root
    for name, content in before.items():
        (root / name).write_bytes(content)


@pytest.fixture
def workdir(made, tmp_path):
    return shutil.copytree(made / "run", tmp_path / "run")


def test_replaced_database_photos_get_codes_of_their_own(root, workdir, tmp_path, caplog):
    before = read(workdir)
    for row in REPLACED:
        write_photo(root, row, 1000 + row)
    pipeline.run_stages(config(root), workdir)
    assert f"{len(REPLACED)} of {TOTAL} photos changed since the last start" in caplog.text
    assert "the database's photos changed since the codes were made" in caplog.text
    after = read(workdir)
    pipeline.run_stages(config(root, "other_cache"), tmp_path / "fresh")
    fresh = read(tmp_path / "fresh")
    for name, array in after[1].items():
        np.testing.assert_array_equal(array, fresh[1][name], name)
    assert after[0] == fresh[0]
    changed = [f"{row:02d}.png" for row in REPLACED]
    files = [one[1]["regions.npz/codes"] for one in (before, after)]
    ids = before[1]["database.npz/ids"].tolist()
    assert any((files[0][ids.index(name)] != files[1][ids.index(name)]).any() for name in changed)
    hashes = [one[0]["provenance"]["split_hash"] for one in (before, after)]
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("what", ["training photos", "labels of the training photos"])
def test_a_changed_training_set_is_refused(root, workdir, what):
    if what == "training photos":
        write_photo(root, NUM_QUERY + 2, 77)
    else:
        write_labels(root, flipped=NUM_QUERY + 2)
    before = read(workdir)
    for stage in ("all", "base", "agent"):
        with pytest.raises(ValueError, match=f"checkpoints/.*: the {what} changed") as error:
            pipeline.run_stages(config(root), workdir, stage)
        assert "\n" not in str(error.value)
    assert read(workdir)[0] == before[0]


def test_stages_after_encoding_refuse_stale_codes(root, workdir):
    write_photo(root, 0, 99)
    for stage in ("evaluate", "report"):
        with pytest.raises(ValueError, match="the queries' photos changed since the codes"):
            pipeline.run_stages(config(root), workdir, stage)
    with pytest.raises(ValueError, match="the queries' photos changed since the codes"):
        rival_table.compare(workdir)
    with pytest.raises(ValueError, match="the queries' photos changed since the codes"):
        sweep.sweep(workdir, [0.5], [0.5])


def test_codes_of_another_encoder_are_made_again(root, workdir, caplog):
    tree, settings = load_arrays(workdir / "encoder.npz")
    save_arrays(workdir / "encoder.npz", jax.tree.map(lambda x: x + 1, tree), settings)
    parts = workdir / "parts" / "database-0.npz"  # of an earlier version
    parts.parent.mkdir()
    parts.write_bytes(b"never read")
    before = read(workdir)
    pipeline.run_stages(config(root), workdir)
    assert "the encoder changed since the codes were made" in caplog.text
    after = read(workdir)
    assert after[0] == before[0]  # the encoder of the checkpoints is written again
    assert not parts.parent.exists()


def test_a_run_of_an_earlier_version_resumes_unverified(root, workdir, caplog):
    before = read(workdir)
    (workdir / "codes" / "made_from.json").unlink()
    for path in workdir.glob("checkpoints/*/*/_CHECKPOINT_METADATA"):
        metadata = json.loads(path.read_text())
        del metadata["custom_metadata"]["made_from"]
        path.write_text(json.dumps(metadata))
    pipeline.run_stages(config(root), workdir)
    assert "without a record of what it was made from; unverified" in caplog.text
    assert pipeline.verify(workdir) == 0
    (workdir / "codes" / "database.npz").unlink()
    pipeline.run_stages(config(root), workdir)
    assert "checkpoints/base" in caplog.text
    assert "does not record what it was made from; unverified" in caplog.text
    assert read(workdir)[0] == before[0]
