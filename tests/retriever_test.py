import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny

import mch_jax
from mch_jax.files import codes_file
from mch_jax.training import run


@pytest.fixture(scope="module")
def retriever(finished):
    return mch_jax.load(finished)


@pytest.fixture(scope="module")
def photo(finished):
    dataset = run.open_run(tiny(), finished).dataset
    return dataset.read(int(dataset.query[0]))


def test_all_forms_of_a_photo_have_the_same_code(retriever, photo, tmp_path):
    path = tmp_path / "a.png"
    image = Image.fromarray(photo)
    image.save(path)
    codes = retriever.encode([path, str(path), image, photo])
    assert codes.shape == (4, 2)
    assert codes.dtype == np.uint8
    for one in (path, str(path), image, photo, photo[None]):
        np.testing.assert_array_equal(retriever.encode(one), codes[:1])
    assert (codes == codes[0]).all()
    assert retriever.encode([]).shape == (0, 2)


def test_more_photos_than_a_batch(retriever, photo):
    upside_down = photo[::-1]
    codes = retriever.encode([photo, upside_down] * 9)
    assert codes.shape == (18, 2)
    np.testing.assert_array_equal(codes[16:], codes[:2])


def test_search_equals_the_index(retriever, photo):
    found = retriever.search(photo, k=5)
    hits = retriever.index.search(retriever.encode(photo), 5)
    query = retriever.encoder.query(photo[None])
    near, _ = retriever.database.search(query.codes[0], 5, margins=query.margins[0])
    assert [x.item for x in found] == [x.item for x in near]
    assert [x.distance for x in found] == hits.distance[0].tolist()
    assert [x.id for x in found] == [str(retriever.database.ids[x.item]) for x in found]
    assert len(retriever.search(photo, k=1000)) == 64


def test_another_codes_file_can_be_searched(finished, photo, tmp_path):
    found = mch_jax.load(finished, finished / "codes" / "train.npz").search(photo, k=1000)
    train = codes_file.load(finished / "codes" / "train.npz")
    assert sorted(x.id for x in found) == sorted(train.ids)
    other = train._replace(codes=np.zeros((len(train.item), 3), np.uint8), num_bits=24)
    codes_file.save(tmp_path / "other.npz", other)
    with pytest.raises(
        ValueError, match="12 bits, .*other.npz has codes of 24 bits; use codes that the same"
    ):
        mch_jax.load(finished, tmp_path / "other.npz")


def test_the_box_belongs_to_the_nearest_code(retriever, photo):
    code, file = retriever.encode(photo)[0], retriever.database
    for found in retriever.search(photo, k=64):
        rows = np.flatnonzero(file.item == found.item)
        apart = [int(np.bitwise_count(file.codes[row] ^ code).sum()) for row in rows]
        assert min(apart) == found.distance
        assert list(found.box) in [
            file.box[r].tolist() for r in rows[np.array(apart) == min(apart)]
        ]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("absent.jpg", "'absent.jpg' does not open: No such file"),
        (np.zeros((4, 4, 3)), r"float64 \[4, 4, 3\], expected a path"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\], expected a path"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\], expected a path"),
        (np.zeros((2, 8, 8, 3), np.uint8), "image is 2 photos, expected one"),
    ],
)
def test_search_refuses_what_is_not_a_photo(retriever, image, message):
    with pytest.raises(ValueError, match=message):
        retriever.search(image)


def test_encode_refuses_what_is_not_a_photo(retriever):
    with pytest.raises(ValueError, match="a photo is int, expected a path"):
        retriever.encode([3])


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run the encode stage first"):
        mch_jax.load(tmp_path)


def test_a_database_of_another_code_length_is_refused(finished, retriever, tmp_path):
    (tmp_path / "encoder.npz").write_bytes((finished / "encoder.npz").read_bytes())
    file = retriever.database.file
    wide = file._replace(codes=np.tile(file.codes[:, :1], 2), num_bits=16)
    codes_file.save(tmp_path / "codes" / "database.npz", wide)
    with pytest.raises(ValueError, match="codes of 12 bits, .*database.npz has codes of 16"):
        mch_jax.load(tmp_path)


def test_importing_is_fast():
    script = "import sys, mch_jax; sys.exit(any(x in sys.modules for x in ('jax', 'numpy', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
