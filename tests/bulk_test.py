"""Tests of bulk encoding: results, resuming, damaged photos, the command, and both engines."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import small_run as small

from mch_jax import bulk
from mch_jax.data import sources
from mch_jax.encoder import Encoder
from mch_jax.files import code_sets, codes_file
from mch_jax.index import BucketIndex


@pytest.fixture(scope="module")
def encoder(small_run):
    return Encoder.from_run(small_run)


@pytest.fixture
def place(small_run, tmp_path):
    """A folder of photos, two of which cannot be decoded."""
    place = tmp_path / "place"
    shutil.copytree(small_run / "photos" / "sub", place)
    (place / "bad.jpg").write_bytes(b"no photo")
    whole = (place / "11.png").read_bytes()
    (place / "cut.png").write_bytes(whole[: len(whole) // 2])
    return place


def plan_of(run, place, directory, shard_size=5, batch_size=4):
    return bulk.make_plan(run, sources.find(place), directory, shard_size, batch_size)


def files_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def export(*arguments):
    command = [sys.executable, "-m", "mch_jax.export", "--batch_size=4", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_shards_have_the_codes_of_single_photos(small_run, place, tmp_path, encoder):
    plan = plan_of(small_run, place, tmp_path / "out")
    bulk.encode_here(plan)
    assert plan.pending() == []
    bulk.merge(plan, tmp_path / "codes.npz")
    file = codes_file.load(tmp_path / "codes.npz")
    photos = [photo for photo in sources.find(place) if photo.id not in ("bad.jpg", "cut.png")]
    assert file.ids.tolist() == [photo.id for photo in photos]
    for number, photo in enumerate(photos):
        ready = bulk.prepare(photo, small.SIDE)
        packed, keep_prob = encoder.encode_regions(np.tile(ready.image, (4, 1, 1, 1)))
        one = code_sets.flatten(
            encoder.code_set(packed[:1], keep_prob[:1], np.array([ready.size])),
            np.array([photo.id]), np.zeros((1, 0)), small.NUM_BITS,
        )  # fmt: skip
        mine = file.item == number
        np.testing.assert_array_equal(file.codes[mine], one.codes)
        np.testing.assert_array_equal(file.box[mine], one.box)
        np.testing.assert_allclose(file.keep_prob[mine], one.keep_prob, atol=1e-5)
    index = BucketIndex.from_file(tmp_path / "codes.npz")
    assert len(index) == len(photos)
    damaged = (tmp_path / "codes.damaged.jsonl").read_text().splitlines()
    reasons = {entry["id"]: entry["reason"] for entry in map(json.loads, damaged)}
    assert reasons.keys() == {"bad.jpg", "cut.png"}
    assert reasons["bad.jpg"].startswith("'bad.jpg' does not decode: expected one of JPEG")


def test_an_interrupted_export_resumes(small_run, place, tmp_path, monkeypatch):
    whole = plan_of(small_run, place, tmp_path / "whole")
    bulk.encode_here(whole)
    plan = plan_of(small_run, place, tmp_path / "killed")
    save, done = codes_file.save, []

    def save_two(path, file):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(path)
        save(path, file)

    monkeypatch.setattr(codes_file, "save", save_two)
    with pytest.raises(KeyboardInterrupt):
        bulk.encode_here(plan)
    monkeypatch.undo()
    again = plan_of(small_run, place, tmp_path / "killed")
    assert again.pending() == list(range(2, len(plan.shards)))
    kept = {path: path.stat().st_mtime_ns for path in done}
    bulk.encode_here(again)
    assert {path: path.stat().st_mtime_ns for path in done} == kept
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_a_tar_and_a_list_give_the_codes_of_the_folder(small_run, place, tmp_path):
    names = sorted(path.name for path in place.iterdir())
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for name in names:
            tar.add(place / name, name)
    (place / "all.txt").write_text("\n".join(names))
    found = []
    for source in (place, tmp_path / "all.tar", place / "all.txt"):
        directory = tmp_path / f"{source.name}.out"
        bulk.encode_here(plan_of(small_run, source, directory))
        found.append(files_of(directory))
        for name in list(found[-1]):  # they have the photos' lengths in a tar, and times of files
            if name == "plan.json" or name.endswith(".made_from.json"):
                del found[-1][name]
    assert len(found[0]) > 2
    assert found[0] == found[1] == found[2]


def test_the_killed_command_resumes(small_run, place, tmp_path):
    arguments = [f"--run={small_run}", f"--images={place}", "--shard_size=1", "--batch_size=1"]
    out, parts = tmp_path / "killed.npz", tmp_path / "killed.npz.parts"
    command = [sys.executable, "-m", "mch_jax.export", *arguments, f"--out={out}"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(parts.glob("*.npz"))) < 2:
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it had ended before it was killed"
    assert not out.exists()
    again = export(*arguments, f"--out={out}")
    assert "of 14 shards were encoded before" in again.stderr
    assert export(*arguments, f"--out={tmp_path / 'whole.npz'}").returncode == 0
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not parts.exists()


def test_shards_of_changed_photos_are_encoded_again(small_run, place, tmp_path, caplog):
    bulk.encode_here(plan_of(small_run, place, tmp_path / "out"))
    before, names = files_of(tmp_path / "out"), sorted(path.name for path in place.iterdir())
    os.utime(place / names[0])  # the same bytes at another time
    assert plan_of(small_run, place, tmp_path / "out").pending() == []
    status = (place / names[6]).stat()
    data = bytearray((place / names[7]).read_bytes())[: status.st_size]
    (place / names[6]).write_bytes(data.ljust(status.st_size, b"\0"))
    os.utime(place / names[6], ns=(status.st_atime_ns, status.st_mtime_ns))
    plan = plan_of(small_run, place, tmp_path / "out")
    assert plan.pending() == [1]
    assert "shard 1: its photos changed; encoding them again" in caplog.text
    bulk.encode_here(plan)
    after = files_of(tmp_path / "out")
    assert before["000001.npz"] != after["000001.npz"]
    assert before["000000.npz"] == after["000000.npz"]
    (tmp_path / "out" / "000000.made_from.json").unlink()
    assert plan_of(small_run, place, tmp_path / "out").pending() == []
    assert "wrote 1 shards without a record of their photos; unverified" in caplog.text


def test_shards_of_different_plans_are_not_mixed(small_run, place, tmp_path):
    plan_of(small_run, place, tmp_path / "out", shard_size=4)
    plan_of(small_run, place, tmp_path / "out")  # no shard of the old plan is lost
    (tmp_path / "out" / "00000.npz").touch()
    with pytest.raises(ValueError, match=r"an export with another shard_size \(5, now 6\)"):
        plan_of(small_run, place, tmp_path / "out", shard_size=6)
    small.photo(1).save(place / "new.png")
    with pytest.raises(ValueError, match="an export with another photos"):
        plan_of(small_run, place, tmp_path / "out")
    with pytest.raises(ValueError, match="is not empty and holds no export"):
        plan_of(small_run, place, place)


def test_the_command_writes_one_file_or_shards(small_run, place, tmp_path):
    run, images = f"--run={small_run}", f"--images={place}"
    result = export(run, images, f"--out={tmp_path / 'codes.npz'}", "--shard_size=5")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("12 photos encoded, 2 damaged")
    assert "left out: 'bad.jpg' does not decode" in result.stderr
    assert re.search(r"shard 2: \d+ photos/s, \d+ % of the time in the network", result.stderr)
    assert len(codes_file.load(tmp_path / "codes.npz").ids) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "codes.damaged.jsonl", "codes.npz", "place",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--images={place}", "--out=x.npz"], "--run is missing"),
        (["--run={run}", "--images={place}"], "--out is missing"),
        (["--run={run}", "--images={place}/absent", "--out=x.npz"], "absent' does not exist"),
        (["--run={place}", "--images={place}", "--out={out}/x.npz"], "encoder.npz: No such file"),
        (["--run={run}", "--images={place}/bad.txt", "--out={out}/x.npz"], "none of 1 photos"),
    ],
)
def test_wrong_arguments_get_one_line(small_run, place, tmp_path, arguments, reason):
    (place / "bad.txt").write_text("bad.jpg\n")
    out = tmp_path / "out"
    out.mkdir()
    result = export(*(text.format(run=small_run, place=place, out=out) for text in arguments))
    assert result.returncode == 2
    *progress, error = result.stderr.splitlines()
    assert reason in error
    assert all("codes: " in line or "photos to encode" in line for line in progress)
    assert not list(out.iterdir())


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray warns about its own calls
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="ray is not installed")
def test_ray_writes_the_same_bytes_when_a_worker_is_killed(small_run, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    for seed in range(120):
        small.photo(seed, width=400, height=300).save(place / f"{seed:03d}.png")
    bulk.encode_here(plan_of(small_run, place, tmp_path / "local"))
    plan, killed = plan_of(small_run, place, tmp_path / "ray"), []

    def kill_the_first_worker():
        while not killed:
            time.sleep(0.02)
            if len(plan.pending()) == len(plan.shards):
                continue
            for path in os.listdir("/proc"):
                with contextlib.suppress(OSError, ValueError):
                    command = open(f"/proc/{int(path)}/cmdline").read()  # noqa: SIM115
                    if command.startswith("ray::") and "Worker" in command:
                        os.kill(int(path), signal.SIGKILL)
                        killed.append((int(path), len(plan.pending())))
                        return

    thread = threading.Thread(target=kill_the_first_worker)
    thread.start()
    bulk.encode_on_ray(plan, workers=2)
    thread.join(timeout=10)
    assert killed
    assert killed[0][1] > 0, "the worker was killed after the work was done"
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "local")
