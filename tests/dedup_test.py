"""Near-duplicates of a folder: the groups, the table, the page, resuming, and bad input."""

import csv
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from perceptual_test import photo
from PIL import Image

from mch_jax import dedup
from mch_jax.data import sources
from mch_jax.duplicates import fingerprints, page, pairs
from mch_jax.duplicates.fingerprints import Fingerprints

HOSTILE = "x \"'><script>alert(1)<,\u202e;\u0007\n$lead é.png"


@pytest.fixture
def folder(tmp_path):
    """Photos of which 0 has copies in three forms, 1 an equal file, and the others none."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for seed in range(8):
        photo(seed).save(folder / f"{seed}.png")
    first = photo(0)
    first.convert("RGB").save(folder / "sub" / "0.jpg", quality=30)
    first.resize((80, 60)).save(folder / "half.png")
    first.crop((8, 6, 152, 114)).save(folder / "crop.png")
    shutil.copy(folder / "1.png", folder / "sub" / "one.png")
    return folder


def run(folder, out, *arguments):
    dedup.main([f"--images={folder}", f"--out={out}", *arguments])
    return read(out)


def read(out):
    """Returns the groups of the table, as sets, after a check of its form."""
    with open(out / "groups.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    found = {}
    for row in rows:
        assert list(row) == ["group", "file", "distance"]
        found.setdefault(int(row["group"]), []).append((row["file"], int(row["distance"])))
    assert list(found) == list(range(1, len(found) + 1))
    assert all(len(group) > 1 and group[0][1] == 0 for group in found.values())
    return [dict(group) for group in found.values()]


def names(groups):
    return [set(group) for group in groups]


EXPECTED = [{"0.png", "sub/0.jpg", "half.png", "crop.png"}, {"1.png", "sub/one.png"}]


def test_altered_copies_are_in_one_group(folder, tmp_path, capsys):
    found = run(folder, tmp_path / "out")
    assert names(found) == EXPECTED
    assert list(found[0])[0] == "0.png"
    assert found[1] == {"1.png": 0, "sub/one.png": 0}
    assert found[0]["sub/0.jpg"] <= 4
    assert capsys.readouterr().out.startswith("12 photos, 2 groups of 6 near-duplicates, 0 damaged")
    assert not (tmp_path / "out" / "damaged.jsonl").exists()
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_tar_and_a_list_give_the_groups_of_the_folder(folder, tmp_path):
    inside = sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*") if p.is_file())
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for name in inside:
            tar.add(folder / name, name)
    (folder / "all.txt").write_text("\n".join(inside))
    for source in (tmp_path / "all.tar", folder / "all.txt"):
        found = run(source, tmp_path / f"{source.name}.out")
        assert sorted(map(sorted, names(found))) == sorted(map(sorted, EXPECTED))


def test_the_threshold_counts_bits(folder, tmp_path):
    assert names(run(folder, tmp_path / "out", "--threshold=0"))[-1] == EXPECTED[1]
    wide = run(folder, tmp_path / "out", "--threshold=40", "--noverify")
    assert len(wide[0]) == 12  # everything is near to something
    assert names(run(folder, tmp_path / "out", "--threshold=24")) == EXPECTED  # pixels decide


def test_mirrored_photos_are_found_where_asked_for(folder, tmp_path):
    photo(5).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    assert names(run(folder, tmp_path / "out")) == EXPECTED
    found = run(folder, tmp_path / "out", "--mirrored")
    assert names(found) == [*EXPECTED, {"5.png", "mirrored.png"}]


def test_codes_of_an_encoder(folder, tmp_path, small_run):
    found = run(folder, tmp_path / "out", f"--run={small_run}", "--threshold=4")
    assert {"1.png", "sub/one.png"} in names(found)
    assert all(group <= EXPECTED[0] or group <= EXPECTED[1] for group in names(found))
    prints = read_prints(folder, tmp_path / "kept", fingerprints.encoder_codes(small_run))
    assert prints.codes.shape[:2] == (12, 6)
    assert names(run(folder, tmp_path / "out")) == EXPECTED  # fingerprints of both do not mix


def read_prints(folder, directory, maker=None):
    directory.mkdir(exist_ok=True)
    maker = maker or fingerprints.perceptual_codes()
    return fingerprints.make(sources.find(folder), directory, maker)


def test_pairs_are_those_of_a_double_loop():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (60, 3, 8), np.uint8)
    for row in range(30):  # neighbours of earlier ones, by a view
        codes[row + 30, 0] = codes[row, row % 3] ^ (rng.random(8) < 0.6)
    expected = set()
    for i in range(60):
        for j in range(60):
            nearest = min(int(np.bitwise_count(codes[i, 0] ^ code).sum()) for code in codes[j])
            if i != j and nearest <= 5:
                expected.add((i, j))
    found = np.concatenate(list(pairs.near_pairs(codes, 64, 5)))
    assert {tuple(pair) for pair in found.tolist()} == expected
    assert len(expected) > 10


def test_distances_of_a_group_are_to_its_first():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (3, 2, 8), np.uint8)
    codes[1, 0] = codes[0, 1] ^ np.array([1, 0, 0, 0, 0, 0, 0, 0], np.uint8)
    codes[2, 0] = codes[1, 0] ^ np.array([255, 1, 0, 0, 0, 0, 0, 0], np.uint8)
    codes[2, 1] = codes[0, 0] ^ np.array([0, 0, 0, 0, 0, 0, 0, 127], np.uint8)
    blank = np.zeros((3, 32, 32), np.uint8)
    found = Fingerprints(np.arange(3), codes, blank, np.full((3, 2), 9, np.int32), {})
    groups = pairs.groups_of(found, fingerprints.perceptual_codes(), 9, verify=False)
    assert groups == [[(0, 0), (1, 1), (2, 7)]]


KILLED = """
import os, signal, sys
from mch_jax import dedup
from mch_jax.duplicates import fingerprints
fingerprints.SHARD_SIZE = 3
write, done = fingerprints._write, []
def write_two(*arguments):
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(write(*arguments))
fingerprints._write = write_two
dedup.main(sys.argv[1:])
"""


def outputs(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.parent.name != fingerprints.FOLDER
    }


def test_a_killed_call_resumes_with_the_same_result(folder, tmp_path, monkeypatch):
    (folder / "bad.jpg").write_bytes(b"no photo")
    run(folder, tmp_path / "whole")
    arguments = [f"--images={folder}", f"--out={tmp_path / 'killed'}"]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed" / "fingerprints").glob("*.npz")}
    assert len(kept) == 2
    read_again, prepare = [], fingerprints._prepare
    count = lambda item, side: read_again.append(item.id) or prepare(item, side)
    monkeypatch.setattr(fingerprints, "_prepare", count)
    run(folder, tmp_path / "killed")
    assert len(read_again) == 13 - 6
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")


def test_only_new_and_changed_photos_are_read_again(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(folder, out)
    (folder / "crop.png").unlink()
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes())
    photo(7).resize((100, 75)).save(folder / "seven.png")
    read_again, prepare = [], fingerprints._prepare
    count = lambda item, side: read_again.append(item.id) or prepare(item, side)
    monkeypatch.setattr(fingerprints, "_prepare", count)
    found = run(folder, out)
    assert sorted(read_again) == ["3.png", "seven.png"]
    assert names(found) == [
        {"0.png", "half.png", "sub/0.jpg"}, {"1.png", "sub/one.png"}, {"2.png", "3.png"},
        {"7.png", "seven.png"},
    ]  # fmt: skip
    monkeypatch.undo()
    run(folder, tmp_path / "fresh")
    assert outputs(out) == outputs(tmp_path / "fresh")


def test_files_of_fingerprints_that_are_no_longer_used_are_removed(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "SHARD_SIZE", 4)
    before = read_prints(folder, tmp_path / "kept")
    count = len(list((tmp_path / "kept").iterdir()))
    for path in folder.glob("[0-9].png"):
        path.unlink()
    after = read_prints(folder, tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) < count
    assert len(after.row) == 4 < len(before.row)
    np.testing.assert_array_equal(after.codes, read_prints(folder, tmp_path / "new").codes)


def test_damaged_photos_are_left_out_and_listed(folder, tmp_path, capsys):
    (folder / "bad.jpg").write_bytes(b"no photo")
    (folder / "9.png").write_bytes((folder / "2.png").read_bytes()[:500])
    assert names(run(folder, tmp_path / "out")) == EXPECTED
    assert ", 2 damaged, " in capsys.readouterr().out
    lines = (tmp_path / "out" / "damaged.jsonl").read_text().splitlines()
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, lines)}
    assert reasons.keys() == {"bad.jpg", "9.png"}
    assert reasons["bad.jpg"].startswith("'bad.jpg' does not decode: expected one of JPEG")
    assert "2 photos could not be read" in (tmp_path / "out" / "index.html").read_text()
    message = "2 of 14 photos are damaged, first: '9.png' does not decode.*set --on_damaged=skip"
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "out", "--on_damaged=refuse")


def test_photos_without_near_duplicates(folder, tmp_path):
    (folder / "all.txt").write_text("4.png\n5.png")
    assert run(folder / "all.txt", tmp_path / "out") == []
    assert (tmp_path / "out" / "groups.csv").read_bytes() == b"group,file,distance\r\n"
    assert "No near-duplicates among 2 photos." in (tmp_path / "out" / "index.html").read_text()


def fails(*arguments):
    """Returns the line that the command ends with."""
    command = [sys.executable, "-m", "mch_jax.dedup", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert len(lines) == 1
    return lines[0]


def test_an_empty_folder_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    line = fails(f"--images={tmp_path / 'empty'}", f"--out={tmp_path / 'out'}")
    assert "holds no photo; expected files that end in .bmp" in line
    assert not (tmp_path / "out").exists()


def test_bad_input_is_refused(folder, tmp_path):
    def refused(message, *arguments, images=folder, out=tmp_path / "out"):
        with pytest.raises(ValueError, match=message):
            dedup.main([f"--images={images}", f"--out={out}", *arguments])

    refused("does not exist; expected a folder of photos", images=tmp_path / "none")
    refused("--out=.* is inside --images=.*; expected a directory elsewhere", out=folder / "out")
    refused("--out=.* is a file; expected a directory", out=folder / "1.png")
    refused("is not empty and holds no groups; choose another directory", out=tmp_path)
    refused("--threshold=64, expected less than the 64 bits of a code", "--threshold=64")
    refused("--mirrored needs perceptual codes", "--mirrored", f"--run={tmp_path}")
    refused("expected the encoder of a finished run", f"--run={tmp_path}")
    for path in folder.rglob("*.*"):
        path.write_bytes(b"no photo")
    refused("none of 12 photos can be read, first: '0.png' does not decode")


def test_a_damaged_file_of_fingerprints_is_named(folder, tmp_path):
    out = tmp_path / "out"
    run(folder, out)
    path = out / "fingerprints" / "000000.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="000000.npz is damaged .*; delete it and start again"):
        run(folder, out)
    path.unlink()
    assert names(run(folder, out)) == EXPECTED


def test_a_second_call_in_the_same_directory_is_refused(folder, tmp_path):
    from mch_jax.files import locks

    out = tmp_path / "out"
    run(folder, out)
    with locks.held(out / ".lock", "it", ""), pytest.raises(ValueError, match="is in use by"):
        run(folder, out)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_hostile_names_are_harmless_in_the_table_and_on_the_page(folder, tmp_path):
    target = folder / HOSTILE.replace("/", "_")
    shutil.copy(folder / "2.png", target)
    os.symlink("2.png", os.fsencode(folder) + b"/\xff.png")
    found = run(folder, tmp_path / "out")
    assert {"2.png", target.name} in names(found)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "<script>alert" not in text
    assert not set(text) & set("\u202e\u0007\ufffd")
    values = [json.loads(html.unescape(x)) for x in re.findall(r' value="([^"]*)"', text)]
    assert sorted(values) == sorted(name for group in found for name in group)


def test_the_page_shows_every_photo_and_needs_no_network(folder, tmp_path):
    out = tmp_path / "out"
    found = run(folder, out)
    text = (out / "index.html").read_text()
    assert "2 groups with 6 of 12 photos." in text
    shown = re.findall(r'<img src="(thumbnails/[0-9a-f]{32}\.jpg)"', text)
    assert len(shown) == 6
    assert len(set(shown)) == 5  # two files are equal
    for name in shown:
        with Image.open(out / name) as image:
            assert max(image.size) <= page.SIDE
    assert {p.name for p in (out / "thumbnails").iterdir()} == {x.rpartition("/")[2] for x in shown}
    assert text.count('type="checkbox"') == sum(map(len, found))
    assert text.count("data-largest>") == len(found)
    assert not re.search(r"(?:src|href)=\"?(?:https?:)?//", text)


def test_a_page_of_many_groups_shows_the_first(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_MAX_GROUPS", 1)
    assert len(run(folder, tmp_path / "out")) == 2
    text = (tmp_path / "out" / "index.html").read_text()
    assert "The first 1 groups are shown; groups.csv has all." in text
    assert text.count('type="checkbox"') == 4
