"""What photos contain: digests of their bytes, kept until the files change."""

import dataclasses
import os
import time

import numpy as np
import pytest
from labelled_folder import encoded, picture

from mch_jax import data
from mch_jax.data import contents
from mch_jax.files import load_arrays, save_arrays


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    splits = ["query"] * 2 + ["database"] * 3 + ["train"] * 3
    rows = [f"{i}.jpg,{split},{i % 2},1" for i, split in enumerate(splits)]
    (folder / "labels.csv").write_text("\n".join(["file,split,a,b", *rows]) + "\n")
    for i in range(8):
        (folder / f"{i}.jpg").write_bytes(encoded(picture(i)))
    return folder


def counted(root):
    """Returns the data set of a folder, and the lists of rows that are read and decoded."""
    dataset, read, decoded = data.load("folder", root), [], []

    def content(row):
        read.append(row)
        assert dataset.content is not None
        return dataset.content(row)

    def pixels(row):
        decoded.append(row)
        return dataset.read(row)

    return dataclasses.replace(dataset, read=pixels, content=content), read, decoded


def test_a_photo_with_other_bytes_of_the_same_size_and_time_is_noticed(root, tmp_path, caplog):
    kept, photo = tmp_path / "audit.npz", root / "4.jpg"
    before, _ = data.audit(data.load("folder", root), kept=kept)
    status = photo.stat()
    content = bytearray(photo.read_bytes())
    content[-40] ^= 1
    photo.write_bytes(content)
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (photo.stat().st_size, photo.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    dataset, read, decoded = counted(root)
    after, _ = data.audit(dataset, kept=kept)
    assert sorted(read) == list(range(8))
    assert decoded == [4]
    assert before.digests is not None
    assert after.digests is not None
    assert np.flatnonzero((before.digests != after.digests).any(1)).tolist() == [4]
    assert "1 of 8 photos changed since the last start, '4.jpg' first" in caplog.text


def test_an_unchanged_set_is_not_read_and_a_touched_one_not_decoded(root, tmp_path):
    kept = tmp_path / "audit.npz"
    first, _ = data.audit(data.load("folder", root), kept=kept)
    for touched in (False, True):
        if touched:
            time.sleep(0.01)
            os.utime(root / "0.jpg")
        dataset, read, decoded = counted(root)
        again, _ = data.audit(dataset, kept=kept)
        assert len(read) == 8 * touched
        assert decoded == []
        assert (again.digests == first.digests).all()
        assert (again.sizes == first.sizes).all()


def test_an_audit_of_an_earlier_version_lacks_only_its_digests(root, tmp_path):
    kept = tmp_path / "audit.npz"
    first, _ = data.audit(data.load("folder", root), kept=kept)
    tree, settings = load_arrays(kept)
    settings["fingerprint"] = contents._fingerprint(data.load("folder", root), with_ctime=False)
    save_arrays(kept, {"sizes": tree["sizes"]}, settings)
    dataset, read, decoded = counted(root)
    again, _ = data.audit(dataset, kept=kept)
    assert (again.digests == first.digests).all()
    assert (sorted(read), decoded) == (list(range(8)), [])
    assert "digests" in load_arrays(kept)[0]


def test_digests_of_skipped_photos_leave_the_data_set(root):
    (root / "5.jpg").write_bytes(b"no photo")
    dataset, _ = data.audit(data.load("folder", root), "skip")
    assert dataset.digests is not None
    assert dataset.content is not None
    expected = [contents.digest(dataset.content(row)) for row in range(7)]
    assert [bytes(row) for row in dataset.digests] == expected


def test_generated_photos_are_known_by_their_pixels(tmp_path):
    def scenes():
        return data.scenes(size=32, num_train=4, num_database=4, num_query=2)

    kept = tmp_path / "audit.npz"
    first, _ = data.audit(scenes(), kept=kept)
    decoded = []
    same = scenes()
    counted = dataclasses.replace(same, read=lambda row: (decoded.append(row), same.read(row))[1])
    assert (data.audit(counted, kept=kept)[0].digests == first.digests).all()
    assert len(decoded) == contents._SAMPLE
    changed = dataclasses.replace(same, read=lambda row: 255 - same.read(row))
    assert (data.audit(changed, kept=kept)[0].digests != first.digests).any(1).all()
