import pickle

import numpy as np
import pytest
from PIL import Image

from mch_jax import data
from mch_jax.data import composer

SMALL = {"num_train": 60, "num_database": 50, "num_query": 30}


@pytest.fixture(scope="module")
def dataset() -> data.Dataset:
    return data.scenes(size=64, **SMALL)


def test_there_are_twelve_classes_and_none_is_a_background():
    files = [photo.file for photo in composer.PHOTOS.values()]
    assert len(composer.CLASSES) >= 12
    assert len(set(files)) == len(files)
    assert not any(file.endswith(composer._BACKGROUNDS) for file in files)


def test_splits(dataset):
    assert len(dataset.ids) == len(dataset.labels) == 140
    np.testing.assert_array_equal(dataset.train, np.arange(60))
    np.testing.assert_array_equal(dataset.database, np.arange(110))
    np.testing.assert_array_equal(dataset.query, np.arange(110, 140))
    assert dataset.ids[[0, 60, 110]].tolist() == ["train/00000", "database/00000", "query/00000"]


def test_defaults():
    dataset = data.scenes()
    assert [len(dataset.train), len(dataset.database), len(dataset.query)] == [2000, 4500, 400]
    assert dataset.read(0).shape == (128, 128, 3)
    # A scene shows one to four photos, each of them once.
    assert set(dataset.labels.sum(1).tolist()) == {1, 2, 3, 4}
    assert dataset.labels.mean(0).min() > 0.1


def test_scenes_depend_on_seed_and_row_only(dataset):
    again = data.scenes(size=64, **SMALL)
    other = data.scenes(size=64, seed=1, **SMALL)
    np.testing.assert_array_equal(again.labels, dataset.labels)
    backwards = [again.read(row) for row in (100, 5)][::-1]
    for row, image in zip((5, 100), backwards, strict=True):
        np.testing.assert_array_equal(dataset.read(row), image)
    assert not np.array_equal(other.labels, dataset.labels)
    assert not np.array_equal(other.read(5), dataset.read(5))


def test_more_rows_do_not_change_training_scenes(dataset):
    longer = data.scenes(size=64, num_train=60, num_database=70, num_query=10)
    np.testing.assert_array_equal(longer.read(59), dataset.read(59))


def test_composers_can_be_pickled(dataset):
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).read(7), dataset.read(7))


def test_labels_are_the_classes_of_the_pieces(dataset):
    for row in range(140):
        labels = [piece.label for piece in dataset.read.pieces(row)]
        assert sorted(labels) == np.flatnonzero(dataset.labels[row]).tolist()


def test_training_and_other_pieces_come_from_different_halves(dataset):
    """The rightmost training pixel of each photo is left of all pixels of other scenes."""
    cuts = {"train": {}, "rest": {}}
    for row in range(140):
        for piece in dataset.read.pieces(row):
            split = "train" if row in dataset.train else "rest"
            cuts[split].setdefault(piece.label, []).append(piece.source)
            assert piece.half == ("left" if split == "train" else "right")
    assert len(cuts["train"]) == len(cuts["rest"]) == len(composer.CLASSES)
    for label, photo in enumerate(composer.PHOTOS.values()):
        width, height = composer._open(photo.file).size
        train, rest = (np.array(cuts[split][label]) for split in ("train", "rest"))
        assert train[:, 2].max() <= rest[:, 0].min()
        for cut in np.concatenate([train, rest]):
            assert 0 <= cut[0] < cut[2] <= width
            assert 0 <= cut[1] < cut[3] <= height


def test_resized_halves_do_not_mix(monkeypatch):
    """Painting the right halves black does not change the resized left halves."""
    before = {key: half.image.tobytes() for key, half in composer._halves(40).items()}
    opened = composer._open

    def blackened(file):
        image = opened(file)
        photo = next(photo for photo in composer.PHOTOS.values() if photo.file == file)
        middle = sum(round(photo.area[i] * image.width) for i in (0, 2)) // 2
        image.paste(0, (middle, 0, image.width, image.height))
        return image

    monkeypatch.setattr(composer, "_open", blackened)
    after = composer._halves.__wrapped__(40)
    for (label, part), half in after.items():
        assert (half.image.tobytes() == before[label, part]) == (part == "left")


def test_each_piece_is_in_a_quarter_or_in_the_middle(dataset):
    for row in range(140):
        pieces = dataset.read.pieces(row)
        slots = set()
        for piece in pieces:
            left, top, right, bottom = piece.box
            assert min(left, top) >= 0
            assert max(right, bottom) <= 1
            slot = (left >= 0.5, top >= 0.5)
            inside = all(
                0.5 * far <= low < high <= 0.5 + 0.5 * far
                for far, low, high in ((slot[0], left, right), (slot[1], top, bottom))
            )
            middle = abs((left + right) / 2 - 0.5) < 0.08 and abs((top + bottom) / 2 - 0.5) < 0.08
            assert inside or (middle and len(pieces) == 1)
            slots.add(slot)
        assert len(slots) == len(pieces)


def test_a_piece_shows_its_source():
    """A print that is not rotated shows the photo's pixels inside its frame."""
    compose = composer.Composer(seed=0, size=128, num_train=10)
    piece = compose.pieces(20)[0]._replace(angle=0.0)
    scene = Image.new("RGB", (128, 128))
    composer._paste(scene, 128, piece)
    left, top, right, bottom = (round(128 * edge) for edge in piece.box)
    shown = np.asarray(scene.crop((left + 3, top + 3, right - 3, bottom - 3)), np.float32)
    photo = composer.PHOTOS[composer.CLASSES[piece.label]]
    image = composer._open(photo.file)
    if photo.tone:
        image = Image.fromarray(composer._colors(photo.tone)[np.asarray(image)])
    cut = image.convert("RGB").resize(
        (right - left - 4, bottom - top - 4), Image.Resampling.BILINEAR, piece.source
    )
    expected = np.asarray(cut, np.float32)[1:-1, 1:-1]
    assert np.abs(shown - expected).mean() < 4
    # The frame is light.
    assert np.asarray(scene)[top + 1, (left + right) // 2].min() > 200


@pytest.mark.parametrize("setting", ["seed", "size", "num_train", "num_database", "num_query"])
def test_negative_settings_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting} is -1, expected at least"):
        data.scenes(**{setting: -1})


def test_missing_photos_are_reported_with_the_extra_to_install():
    with pytest.raises(ValueError, match=r"pip install 'mch_jax\[scenes\]'"):
        composer._open("no_such_package/data/cat.png")
