"""Puts load on a sharded index on Ray, and kills one of its nodes meanwhile.

python bench/cluster.py [--images=666667] [--seconds=30] [--out=bench/results/cluster.json]

Starts a Ray cluster of three nodes on this host (three raylets with processes of their own),
writes shards of synthetic clustered codes with 64 bits, 1.5 per item, and serves each shard from
two nodes. Every answer is compared with that of a `BucketIndex` of all codes: items, distances and
both counts. After a third of the time, the processes of one node are killed. Then codes are added,
items are removed, and every replica is asked for its version. The exit status is 1 if anything
differs.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from mch_jax.cluster import Shards, connect
from mch_jax.index import BucketIndex

NUM_BITS, K, RADIUS, BATCH = 64, 10, 1, 64


def clustered_codes(num_images, num_queries, rng):
    """Returns codes uint8 [c, 8] around 80 centres, item int64 [c] and query codes."""
    centres = rng.integers(0, 2**NUM_BITS, 80, np.uint64)

    def draw(count):
        words = centres[rng.integers(0, 80, count)]
        for bit in range(NUM_BITS):
            words ^= (rng.random(count, np.float32) < 0.05).astype(np.uint64) << np.uint64(bit)
        is_noise = rng.random(count) < 0.1
        words[is_noise] = rng.integers(0, 2**NUM_BITS, is_noise.sum(), np.uint64)
        return words.view(np.uint8).reshape(-1, 8)

    item = np.repeat(np.arange(num_images), rng.choice(3, num_images, p=[0.6, 0.3, 0.1]) + 1)
    return draw(len(item)), item, draw(num_queries)


def same(found, expected):
    """Returns True if all arrays of two answers are equal."""
    return all(np.array_equal(one, two) for one, two in zip(found, expected, strict=True))


class Load:
    """Two clients that search continuously, one with single queries and one with batches."""

    def __init__(self, index, queries, expected):
        self.index, self.queries, self.expected = index, queries, expected
        self.calls = []  # end, duration, number of queries, and whether the answer was right
        self.failures, self._stop = [], threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(size,)) for size in (1, BATCH)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def last(self, seconds, fewest=5):
        """Waits until `seconds` have passed and each client has had `fewest` answers."""
        done, end = len(self.calls), time.monotonic() + seconds
        while time.monotonic() < end or any(
            sum(call[2] == size for call in self.calls[done:]) < fewest for size in (1, BATCH)
        ):
            time.sleep(0.05)
            if time.monotonic() > end + 300 or len(self.failures) > 100:
                raise RuntimeError(f"clients got no answers: {self.failures[:3]}")

    def _run(self, size):
        first = 0
        while not self._stop.is_set():
            batch = slice(first, first + size)
            start = time.monotonic()
            try:
                hits = self.index.search(self.queries[batch], K)
            except Exception as error:  # noqa: BLE001  # recorded as a failure
                self.failures.append(f"{type(error).__name__}: {error}")
                continue
            end = time.monotonic()
            right = same(hits, [array[batch] for array in self.expected])
            self.calls.append((end, end - start, size, right))
            first = (first + size) % (len(self.queries) - BATCH)


@contextlib.contextmanager
def nodes(num_shards):
    """Starts a Ray cluster of three nodes on this host, and stops it at the end."""
    import ray  # pyright: ignore[reportMissingImports]
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    resources = {"num_cpus": num_shards, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=resources)
    try:
        for _ in range(2):
            cluster.add_node(**resources)
        ray.init(
            address=cluster.address, namespace="mch_jax", log_to_driver=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def percentiles(calls, size):
    """Returns median, 99th percentile and maximum of the times for one batch size, in ms."""
    took = np.array([seconds for _, seconds, count, _ in calls if count == size])
    return [round(1e3 * float(value), 1) for value in (*np.percentile(took, [50, 99]), took.max())]


def version(replica, wanted, patience=120.0):
    """Returns the version that a replica reports; waits for a lost replica to restart."""
    from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

    deadline = time.monotonic() + patience
    while True:
        try:
            return replica("sizes", wanted).result(patience)[0]
        except RayError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def kill_fullest(cluster):
    """Kills the processes of the worker node with most replicas; returns their number."""
    from ray.util import placement_group_table  # pyright: ignore[reportMissingImports]

    replicas = Counter(
        node for group in placement_group_table().values()
        for node in group["bundles_to_node_id"].values()
    )  # fmt: skip
    node = max(cluster.worker_nodes, key=lambda node: replicas[node.node_id])
    for processes in list(node.all_processes.values()):
        for pid in [process.process.pid for process in processes]:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for victim in (pid, *map(int, children)):  # the replicas are children of the raylet
                with contextlib.suppress(ProcessLookupError):  # the process has already ended
                    os.kill(victim, signal.SIGKILL)
    return replicas[node.node_id]


def measure(cluster, directory, images, shards, seconds):
    """Runs the whole measurement and returns its record."""
    rng = np.random.default_rng(0)
    codes, item, queries = clustered_codes(images, 1024, rng)
    whole = BucketIndex.build(codes, item, NUM_BITS)
    Shards.build(codes, item, NUM_BITS, directory, shards)
    start = time.monotonic()
    index = connect(directory, replicas=2, timeout=120.0)
    index.wait()
    record = {"codes": len(codes), "images": images, "shards": shards, "replicas": 2, "nodes": 3}
    record["seconds_to_start"] = round(time.monotonic() - start, 1)
    record["equal_before"] = same(index.search(queries, K), whole.search(queries, K)) and same(
        index.within(queries[:99], RADIUS), whole.within(queries[:99], RADIUS)
    )
    with Load(index, queries, whole.search(queries, K)) as load:
        load.last(seconds / 3)
        killed = time.monotonic()
        record["replicas_lost"] = kill_fullest(cluster)
        load.last(2 * seconds / 3)
    before = [call for call in load.calls if call[0] < killed]
    after = [call for call in load.calls if call[0] >= killed]
    record["wrong_answers"] = sum(not right for *_, right in load.calls)
    record["failures"] = load.failures
    record["queries"] = sum(count for _, _, count, _ in load.calls)
    record["queries_after_the_kill"] = sum(count for _, _, count, _ in after)
    for name, calls in (("before", before), ("after", after)):
        for size in (1, BATCH):
            record[f"ms_{name}_batch_{size}"] = percentiles(calls, size)
    record["longest_stall_s"] = round(max(seconds for _, seconds, *_ in after), 2)
    new = rng.integers(0, 256, (500, 8), np.uint8)
    owner, gone = rng.integers(0, images + 100, 500), rng.integers(0, images, 500)
    for one in (whole, index):
        one.add(new, owner)
        one.remove(gone)
    start = time.monotonic()
    record["equal_after_changes"] = same(
        index.search(queries, K), whole.search(queries, K)
    ) and same(index.search(new, K), whole.search(new, K))
    pairs = list(zip(index._replicas, index._versions, strict=True))
    agree = [version(one, wanted) == wanted for own, wanted in pairs for one in own]
    record["seconds_until_all_replicas_answer"] = round(time.monotonic() - start, 1)
    record["replicas_agree"] = all(agree)
    return record


def main():
    """Measures, prints the record and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=666_667)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long the load lasts")
    parser.add_argument("--out", type=Path, help="where to write the record as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, nodes(arguments.shards) as cluster:
        record = measure(cluster, directory, arguments.images, arguments.shards, arguments.seconds)
    print(json.dumps(record, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    fine = record["equal_before"] and record["equal_after_changes"] and record["replicas_agree"]
    sys.exit(not fine or bool(record["wrong_answers"] or record["failures"]))


if __name__ == "__main__":
    main()
