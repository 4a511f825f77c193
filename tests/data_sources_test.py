import io
import tarfile

import numpy as np
import pytest
import small_run as small

from mch_jax.data import sources


def write(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    small.photo(seed).save(path)
    return path


def names(source):
    return [photo.id for photo in sources.find(source)]


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def png(seed):
    stream = io.BytesIO()
    small.photo(seed).save(stream, "PNG")
    return stream.getvalue()


def test_photos_of_a_folder_come_in_a_fixed_order(tmp_path):
    for name in ("b.png", "a/z.PNG", "a/c.jpg", ".hidden/x.png", ".y.png"):
        write(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file\n")
    assert names(tmp_path) == ["b.png", "a/c.jpg", "a/z.PNG"]


def test_tars_are_read_without_unpacking(tmp_path):
    write_tar(tmp_path / "x.tar", [("a.png", png(1)), ("note.txt", b"x"), ("a.png", png(2))])
    write(tmp_path / "p.png", 3)
    assert names(tmp_path / "x.tar") == ["a.png"]
    found = {photo.id: sources.decode(photo) for photo in sources.find(tmp_path)}
    assert list(found) == ["p.png", "x.tar/a.png"]
    np.testing.assert_array_equal(found["x.tar/a.png"], np.asarray(small.photo(2)))
    np.testing.assert_array_equal(found["p.png"], np.asarray(small.photo(3)))


def test_paths_in_a_list_are_relative_to_its_folder(tmp_path):
    write(tmp_path / "sub" / "with space.png", 4)
    (tmp_path / "list.txt").write_text("\nsub/with space.png\nabsent.png\n")
    first, second = sources.find(tmp_path / "list.txt")
    np.testing.assert_array_equal(sources.decode(first), np.asarray(small.photo(4)))
    with pytest.raises(ValueError, match=r"'absent.png' does not open: No such file"):
        sources.decode(second)


@pytest.mark.parametrize("line", ["/etc/passwd", "../x.png", "a/../../x.png"])
def test_paths_in_a_list_stay_in_its_folder(tmp_path, line):
    (tmp_path / "list.txt").write_text(f"ok.png\n{line}\n")
    with pytest.raises(ValueError, match=r"line 2: .* leads outside"):
        sources.find(tmp_path / "list.txt")


def test_links_and_members_stay_in_their_source(tmp_path):
    secret = write(tmp_path / "secret.png")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.png").symlink_to(secret)
    (inside / "folder").symlink_to(tmp_path)
    (photo,) = sources.find(inside)
    with pytest.raises(ValueError, match="link that leads outside"):
        sources.decode(photo)
    write_tar(tmp_path / "x.tar", [("../../a.png", png(1))])
    with pytest.raises(ValueError, match="leads outside"):
        sources.decode(sources.find(tmp_path / "x.tar")[0])


def test_a_name_that_is_not_utf8_is_refused_when_decoded(tmp_path):
    write(tmp_path / "a\udcff.png")
    (photo,) = sources.find(tmp_path)
    with pytest.raises(ValueError, match=r"a\\udcff.png\" is not a UTF-8 name"):
        sources.decode(photo)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no photo"),
        (lambda path: path.write_text("a.png\nb.png\na.png\n"), "line 3: 'a.png' is in line 1"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not UTF-8"),
    ],
)
def test_sources_without_photos_are_refused(tmp_path, make, reason):
    make(tmp_path / "source")
    with pytest.raises(ValueError, match=reason):
        sources.find(tmp_path / "source")


def test_a_damaged_tar_is_named(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(ValueError, match=r"x.tar' is not a whole, uncompressed tar"):
        sources.find(tmp_path / "x.tar")
