"""Saved indexes with flipped bytes or truncated files, and processes killed during a save."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mch_jax.index import BucketIndex

NUM_KILLS = int(os.environ.get("INDEX_KILLS", "8"))
NUM_BITS = 24  # more than kernels.segment.DIRECT_BITS, so that a small index has a small table
LONG_BITS = 144  # three words, saved in another format

# Changes an index in an endless loop. State n holds the items n to n + 39, whose codes are known,
# so that any other state is recognised. A line of output names a state whose save begins or ends.
WRITER = """
import sys
import numpy as np
from mch_jax.index import BucketIndex, bucket_index

bucket_index.MERGE_FLOOR, bucket_index.MERGE_SHARE = 2, 0  # every add starts a merge

def arrays(item):
    words = np.stack([item * 7919 % 2**24, item * 10472927 % 2**24], 1).astype("<u4").reshape(-1, 1)
    codes = words.view(np.uint8)[:, :3]
    return np.tile(codes, (1, index.num_bits // 24)), np.repeat(item, 2)

directory, n = sys.argv[1:]
n, index = int(n), BucketIndex.open(directory)
while True:
    index.add(*arrays(np.arange(n + 40, n + 41)))
    index.remove(n)
    n += 1
    if n % 3 == 0:
        index.merge()
    print("begin", n, flush=True)
    index.save(directory)
    print("end", n, flush=True)
    if n % 5 == 0:
        index = BucketIndex.open(directory)
"""


def packed(words, num_bits=NUM_BITS):
    """Returns codes given as integers in the bytes of a codes file."""
    codes = np.array(words, "<u4").reshape(-1, 1).view(np.uint8)
    if num_bits > 32:
        return np.tile(codes[:, :3], (1, num_bits // 24))
    return codes[:, : num_bits // 8]


def build(n, num_bits=NUM_BITS):
    item = np.arange(n, n + 40)
    words = np.stack([item * 7919, item * 10472927], 1) % 2 ** min(num_bits, 24)
    return BucketIndex.build(packed(words, num_bits), np.repeat(item, 2), num_bits)


def answers(index):
    queries = packed(np.arange(16) * 1048573 % 2 ** min(index.num_bits, 24), index.num_bits)
    return [array.tolist() for array in (*index.search(queries, 50), *index.within(queries, 8))]


@pytest.mark.parametrize("num_bits", [NUM_BITS, LONG_BITS])
def test_a_killed_process_leaves_the_state_before_or_after(num_bits, tmp_path):
    directory, rng, state = tmp_path / "index", random.Random(0), 0
    build(0, num_bits).save(directory)
    kills = during = 0
    while kills < NUM_KILLS:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, directory, str(state)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()  # waits for the first save, because imports take longest
        time.sleep(rng.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().splitlines()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        kills += 1
        steps = [line.split() for line in lines if len(line.split()) == 2]
        last, number = (steps[-1][0], int(steps[-1][1])) if steps else ("begin", state + 1)
        during += last == "begin"
        index = BucketIndex.open(directory)
        found = answers(index)
        # If it was killed after "end n" and before the next line, state n + 1 may be saved already.
        allowed = [number - 1, number] if last == "begin" else [number, number + 1]
        matching = [n for n in allowed if found == answers(build(n, num_bits))]
        assert matching, f"state {number} after {last}: neither before nor after"
        state = matching[0]
    index.save(directory)  # deletes what killed saves left behind
    named = {
        entry["file"]
        for entry in json.loads((directory / "meta.json").read_text())["files"].values()
    }
    assert {path.name for path in directory.iterdir()} == named | {"meta.json"}
    assert during or NUM_KILLS < 50, "no process was killed during a save"


@pytest.fixture(params=[NUM_BITS, LONG_BITS])
def saved(tmp_path, request):
    """Returns a saved small index with a base, a delta and removed items, and its answers."""
    return save(tmp_path, request.param)


def save(tmp_path, num_bits):
    index = build(0, num_bits)
    index.add(packed([513, 1027], num_bits), np.array([70, 71]))
    index.remove(np.array([3, 5]))
    index.save(tmp_path / "index")
    return tmp_path / "index", answers(index)


def outcome(directory, expected):
    """Returns "same", or the line with which the index is refused."""
    try:
        index = BucketIndex.open(directory)
    except ValueError as error:
        return str(error)
    assert answers(index) == expected
    return "same"


def flip_bytes(directory, path, expected, step=1):
    """Damages every `step`-th byte of a file, one at a time; returns how often it was refused."""
    rng, refused, content = random.Random(path.name[:-20]), 0, path.read_bytes()
    for position in range(0, len(content), step):
        damaged = bytearray(content)
        damaged[position] ^= rng.randrange(1, 256)
        path.write_bytes(damaged)
        result = outcome(directory, expected)
        assert "\n" not in result
        if path.suffix == ".npy":
            assert str(path) in result, position
        refused += result != "same"
    path.write_bytes(content)
    return refused


def test_every_flipped_byte_is_refused_or_harmless(saved):
    directory, expected = saved
    paths, size = sorted(directory.iterdir()), 0
    for path in paths:
        size += path.stat().st_size
        refused = flip_bytes(directory, path, expected)
        assert refused == path.stat().st_size or path.name == "meta.json"
    assert len(paths) == 15
    assert 5_000 < size < 25_000  # bytes, each of which was flipped
    assert outcome(directory, expected) == "same"


def test_flipped_bytes_of_a_direct_table_are_refused(tmp_path):
    directory, expected = save(tmp_path, 16)
    for path in directory.glob("*-table-*"):
        assert path.stat().st_size > 2**18  # 64 Ki slots, too many to flip every byte
        assert flip_bytes(directory, path, expected, step=499) > 500


def test_cut_missing_and_foreign_files_are_named(saved):
    directory, expected = saved
    for path in sorted(directory.iterdir()):
        content = path.read_bytes()
        for size in (0, 1, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:size])
            assert str(path) in outcome(directory, expected)
        path.write_bytes(content + b"\0")
        result = outcome(directory, expected)
        assert str(path) in result or (path.name == "meta.json" and "same" in result)
        path.unlink()
        assert str(path) in outcome(directory, expected)
        path.write_bytes(content)
    meta = json.loads((directory / "meta.json").read_text())
    for text in ("[]", "{}", '"text"', json.dumps({**meta, "format": "mch-index/99"})):
        (directory / "meta.json").write_text(text)
        assert "meta.json" in outcome(directory, expected)
    with pytest.raises(ValueError, match="No such file"):
        BucketIndex.open(directory / "absent")


def test_a_file_of_another_index_is_refused(saved, tmp_path):
    directory, expected = saved
    build(5, BucketIndex.open(directory).num_bits).save(tmp_path / "other")
    for path in directory.glob("*.npy"):
        content = path.read_bytes()
        other = next((tmp_path / "other").glob(path.name[:-20] + "*.npy"))
        shutil.copy(other, path)
        if path.read_bytes() != content:
            assert str(path) in outcome(directory, expected)
        path.write_bytes(content)


def test_saving_never_overwrites_something_else(tmp_path):
    (tmp_path / "meta.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="is of format 'other'"):
        build(0).save(tmp_path)
    assert (tmp_path / "meta.json").read_text() == '{"format": "other"}'


def test_only_changes_are_written_again(saved):
    directory, _ = saved
    before = {path.name for path in directory.iterdir()}
    index = BucketIndex.open(directory)
    index.add(packed([999], index.num_bits), np.array([99]))
    index.save(directory)
    after = {path.name for path in directory.iterdir()}
    assert {name for name in before - after if name.startswith("base")} == set()
    index.merge()
    index.save(directory)
    assert answers(BucketIndex.open(directory)) == answers(index)


def test_an_open_index_outlives_the_files(saved):
    directory, expected = saved
    index = BucketIndex.open(directory)
    num_bits = index.num_bits
    build(7, num_bits).save(directory)
    assert answers(index) == expected
    assert answers(BucketIndex.open(directory, verify=False)) == answers(build(7, num_bits))
