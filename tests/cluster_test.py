import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mch_jax.cluster import (
    Replica,
    ReplicaGroup,
    ShardedIndex,
    Shards,
    client,
    connect,
    shard_of,
)
from mch_jax.index import BucketIndex

POOL = ThreadPoolExecutor(16)


def pack(words, num_bits):
    num_bytes = -(-num_bits // 8)
    rows = [list(int(word).to_bytes(num_bytes, "little")) for word in words]
    return np.array(rows, np.uint8).reshape(len(rows), num_bytes)


def local_replicas(shards, count=2):
    """Returns replicas of every shard in this process."""
    return [
        [caller_of(Replica(shards.path(shard))) for _ in range(count)]
        for shard in range(shards.num_shards)
    ]


def caller_of(replica):
    return lambda method, *arguments: POOL.submit(getattr(replica, method), *arguments)


def answered(value=None, error=None):
    future = Future()
    if error:
        future.set_exception(error)
    else:
        future.set_result(value)
    return future


def assert_equal(found, expected):
    for name, one, two in zip(found._fields, found, expected, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=name)
        assert one.dtype == two.dtype, name


def assert_same_answers(sharded, index, queries):
    assert len(sharded) == len(index)
    for k in (1, 3, 40):
        assert_equal(sharded.search(queries, k), index.search(queries, k))
    for radius in (0, 2, 64):
        assert_equal(sharded.within(queries, radius), index.within(queries, radius))


@st.composite
def changes(draw):
    """Draws a code length, two lists of (code, item) and some queries, many of them similar."""
    num_bits = draw(st.sampled_from([2, 8, 13, 24, 64]))
    near = draw(st.integers(0, 2**num_bits - 1))
    word = st.one_of(
        st.integers(0, 2**num_bits - 1), st.integers(0, num_bits - 1).map(lambda i: near ^ 1 << i)
    )
    pairs = st.lists(st.tuples(word, st.integers(0, 40)), max_size=40)
    return num_bits, draw(pairs), draw(pairs), draw(st.lists(word, min_size=1, max_size=4))


@settings(max_examples=12, deadline=None)
@given(changes(), st.integers(1, 3))
def test_shards_answer_as_one_index(tmp_path_factory, case, num_shards):
    num_bits, first, later, queries = case

    def arrays(pairs):
        items = np.array([item for _, item in pairs], np.int64)
        return pack([code for code, _ in pairs], num_bits), items

    directory = tmp_path_factory.mktemp("shards")
    shards = Shards.build(*arrays(first), num_bits, directory, num_shards)
    sharded = ShardedIndex(shards, local_replicas(shards))
    index = BucketIndex.build(*arrays(first), num_bits)
    queries = pack(queries, num_bits)
    assert_same_answers(sharded, index, queries)
    gone = np.arange(0, 40, 3)
    for one in (sharded, index):
        one.add(*arrays(later))
        one.remove(gone)
    assert_same_answers(sharded, index, queries)
    sharded.merge()
    assert_same_answers(ShardedIndex(Shards(directory), local_replicas(shards)), index, queries)
    assert sharded.num_codes <= index.num_codes
    assert sharded.nbytes > 0


def test_a_batch_of_many_queries_and_wide_counts(tmp_path):
    rng = np.random.default_rng(0)
    codes, item = rng.integers(0, 256, (300, 8), np.uint8), np.arange(300) // 2
    shards = Shards.build(codes, item, 64, tmp_path, 2)
    sharded = ShardedIndex(shards, local_replicas(shards, 1))
    index = BucketIndex.build(codes, item, 64)
    queries = rng.integers(0, 256, (client.QUERIES_PER_CALL + 5, 8), np.uint8)
    assert_equal(sharded.search(queries, 4), index.search(queries, 4))
    assert_equal(sharded.search(queries, 200), index.search(queries, 200))  # probed is 2^64
    assert_equal(sharded.within(queries, 20), index.within(queries, 20))


def test_items_spread_over_shards():
    counts = np.bincount(shard_of(np.arange(10_000), 4))
    assert counts.min() > 2000
    assert shard_of(np.array([5]), 4) == shard_of(np.arange(10), 4)[5]


@pytest.fixture
def shards(tmp_path):
    return Shards.build(pack(range(100), 16), np.arange(100), 16, tmp_path, 2)


def shard_of_two(item):
    """Returns the shard of an item where there are two shards."""
    return int(shard_of(np.array([item]), 2)[0])


def test_a_replica_that_missed_a_change_reads_the_files_first(shards):
    queries, replicas = pack([0, 500], 16), local_replicas(shards)

    def deaf(replica):  # never receives the message that the client sends after a change
        return lambda method, *rest: Future() if method == "sizes" else replica(method, *rest)

    deaf_replicas = [[deaf(one) for one in own] for own in replicas]
    writer = ShardedIndex(shards, deaf_replicas, hedge_after=60.0)  # no call is repeated
    other = ShardedIndex(Shards(shards.directory), replicas)
    writer.add(pack([500], 16), np.array([7]))
    writer.remove(0)
    for _ in range(4):  # every replica answers in turn
        assert writer.search(queries, 1).item.tolist() == [[1], [7]]
    assert other.search(queries, 1).item.tolist() == [[1], [7]]
    other.remove(7)
    assert writer.within(queries[1:], 0).item.tolist() in ([], [7])
    writer.add(pack([501], 16), np.array([8]))  # on top of the other's change
    assert BucketIndex.open(shards.path(shard_of_two(7))).within(queries[1:], 0).item.size == 0
    assert Replica(shards.path(shard_of_two(8))).sizes(None)[0] in writer._versions


def test_a_change_that_fails_leaves_the_files_as_they_were(shards):
    before = shards.versions()

    def broken(index):
        index.remove(3)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        shards.change(shard_of_two(3), broken)
    assert shards.versions() == before
    shards.change(shard_of_two(3), lambda index: index.remove(90))
    found = BucketIndex.open(shards.path(shard_of_two(3))).within(pack([3], 16), 0)
    assert found.item.tolist() == [3]
    index = ShardedIndex(shards, local_replicas(shards, 1))
    before = shards.versions()
    for call in (
        lambda: index.add(pack([1, 2], 16), np.array([1, 2**32])),
        lambda: index.remove(np.array([1, 2, -1])),
    ):
        with pytest.raises(ValueError, match="expected 0 to 4294967295"):
            call()
    assert shards.versions() == before


def test_wrong_directories_are_named(tmp_path, shards):
    with pytest.raises(ValueError, match="holds shards already"):
        Shards.build(pack([1], 8), np.array([1]), 8, shards.directory, 2)
    with pytest.raises(ValueError, match=r"shards.json does not exist"):
        Shards(tmp_path / "absent")
    for text in ("", "[]", '{"format": "other", "num_bits": 8, "shards": 1}'):
        (tmp_path / "shards.json").write_text(text)
        with pytest.raises(ValueError, match=r"shards.json (is|holds) "):
            Shards(tmp_path)


def test_wrong_calls_are_refused_at_once(shards):
    index = ShardedIndex(shards, local_replicas(shards, 1))
    for call, reason in (
        (lambda: index.search(pack([1], 16), 0), "k is 0"),
        (lambda: index.within(pack([1], 16), -1), "radius is -1"),
        (lambda: index.search(pack([1], 8), 1), r"expected uint8 \[n, 2\]"),
    ):
        with pytest.raises(ValueError, match=reason):
            call()


def test_a_slow_replica_is_called_last_for_a_while(monkeypatch):
    monkeypatch.setattr(client, "SUSPECT_FOR", 1e6)
    called, slow = [], Future()

    def first(*_):
        called.append("first")
        return slow

    def second(*_):
        called.append("second")
        return answered("second")

    group = ReplicaGroup([first, second], hedge_after=0.01)
    group._num_calls = 1  # so that the first replica is next
    assert group.call("method") == "second"
    assert called == ["first", "second"]
    for _ in range(3):
        assert group.call("method") == "second"
    assert called == ["first", "second"] + 3 * ["second"]
    group._suspect_until = [0.0, 0.0]  # as after SUSPECT_FOR seconds
    slow.set_result("first")
    assert {group.call("method"), group.call("method")} == {"first", "second"}


def test_a_failing_replica_is_skipped_and_all_of_them_are_retried():
    calls, down = [], OSError("node is gone")

    def never(*_):
        calls.append(time.monotonic())
        return answered(error=down)

    group = ReplicaGroup([never, lambda *_: answered("fine")], hedge_after=60.0)
    assert [group.call("method") for _ in range(4)] == ["fine"] * 4

    def later(*_):
        return never() if len(calls) < 5 else answered("back")

    assert ReplicaGroup([later, later], hedge_after=0.001).call("method") == "back"
    with pytest.raises(ConnectionError, match="no replica answered in .* node is gone"):
        ReplicaGroup([never], hedge_after=0.001, timeout=0.05).call("method")
    with pytest.raises(ConnectionError, match="node is gone"):  # at least one replica is called
        ReplicaGroup([never], timeout=0.0).call("method")
    assert ReplicaGroup([lambda *_: answered("late")], timeout=0.0).call("method") == "late"
    with pytest.raises(ConnectionError, match="no replica answered"):
        ReplicaGroup([lambda *_: Future()], hedge_after=0.001, timeout=0.05).call("method")
    with pytest.raises(ValueError, match="padding"):
        ReplicaGroup([lambda *_: answered(error=ValueError("padding"))]).call("method")


def test_too_few_nodes_are_refused(shards, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    with pytest.raises(ValueError, match="2 replicas need as many nodes, the Ray cluster has 1"):
        connect(shards.directory)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [([], "--index is missing"), (["--index=absent"], "shards.json does not exist")],
)
def test_wrong_arguments_get_one_line(arguments, reason):
    result = subprocess.run(
        [sys.executable, "-m", "mch_jax.cluster", *arguments], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert reason in result.stderr


@pytest.mark.ray
def test_a_killed_node_of_a_real_cluster_loses_no_answer(tmp_path):
    """Kills one of three nodes on this host under load; takes about half a minute."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'mch_jax[cluster]'")
    root, out = Path(__file__).parents[1], tmp_path / "record.json"
    process = subprocess.run(
        [
            sys.executable, root / "bench" / "cluster.py", "--images=2000", "--shards=2",
            "--seconds=6", f"--out={out}",
        ],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
    record = json.loads(out.read_text())
    assert record["replicas_lost"] >= 1
    assert record["queries_after_the_kill"] > 0
    assert (record["wrong_answers"], record["failures"]) == (0, [])
    assert record["equal_before"]
    assert record["equal_after_changes"]
    assert record["replicas_agree"]
