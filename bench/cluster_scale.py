"""Throughput of shards on three local Ray nodes, compared with one index of all codes.

python -m bench.cluster_scale [--images=30000000] [--shards=3] [--out=FILE.json]

The codes are those of bench/index.py, with 64 bits and 1.5 per image; k = 10. Each node serves one
shard. All nodes are processes of this host and share its cores, so that they cannot answer more
queries per second than one index with as many threads; the numbers show what sharding adds to
the work. The ways take turns, and the time is the median over the rounds. The work of each step is
measured as CPU time of this process: a search in one index of all codes, a search in
every shard, what a replica does (it also lists the buckets that it visited, from which the client
counts), and merging the answers. All answers are compared.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from bench import cluster, index, measure
from mch_jax.cluster import Replica, Shards, connect, merge_nearest
from mch_jax.index import BucketIndex

K, NUM_BITS, NUM_QUERIES = 10, 64, 4096
BATCHES = (64, 256, 1024, 4096)


def work(whole, shards, queries, repeats):
    """Returns the CPU microseconds per query of one thread, for each step."""
    parts = [BucketIndex.open(shards.path(number)) for number in range(shards.num_shards)]
    replicas = [Replica(shards.path(number)) for number in range(shards.num_shards)]
    versions = shards.versions()

    def answers():
        return [
            replica.search(version, queries, K).value
            for replica, version in zip(replicas, versions, strict=True)
        ]

    answered = answers()
    calls = {
        "one index": lambda: whole.search(queries, K, threads=1),
        "all shards": lambda: [part.search(queries, K, threads=1) for part in parts],
        "all replicas": answers,
        "merging": lambda: merge_nearest(answered, NUM_BITS),
    }
    spent = measure.interleaved(calls, repeats)
    return {
        name: round(1e6 * statistics.median(times.cpu) / len(queries), 1)
        for name, times in spent.items()
    }


def throughput(whole, sharded, queries, repeats):
    """Returns the queries per second of each way, for each size of a batch."""
    record = {}
    for size in BATCHES:
        batches = [queries[start : start + size] for start in range(0, len(queries), size)]

        def run(search, batches=batches):
            for batch in batches:
                search(batch)

        ways = {
            "one index, one thread": lambda batch: whole.search(batch, K, threads=1),
            "one index, all cores": lambda batch: whole.search(batch, K),
            "shards on Ray": lambda batch: sharded.search(batch, K),
        }
        calls = {name: lambda way=way: run(way) for name, way in ways.items()}
        spent = measure.interleaved(calls, repeats)
        record[size] = {
            name: round(len(queries) / statistics.median(times.wall))
            for name, times in spent.items()
        }
        print(size, record[size], flush=True)
    return record


def main():
    """Measures, prints the record and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=30_000_000)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="where to write the record as JSON")
    arguments = parser.parse_args()
    codes, item, queries = index.clustered_codes(arguments.images, NUM_QUERIES)
    record = {"images": arguments.images, "codes": len(codes), "shards": arguments.shards}
    record |= {"processor": index.processor(), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as directory, cluster.nodes(arguments.shards):
        start = time.perf_counter()
        Shards.build(codes, item, NUM_BITS, directory, arguments.shards)
        record["seconds_to_build_the_shards"] = round(time.perf_counter() - start, 1)
        whole = BucketIndex.build(codes, item, NUM_BITS)
        del codes, item
        record["bytes_per_code"] = round(whole.nbytes / record["codes"], 1)
        sharded = connect(directory, replicas=1, timeout=300.0)
        sharded.wait()
        expected = whole.search(queries, K)
        record["equal"] = cluster.same(sharded.search(queries, K), expected)
        record["us_per_query"] = work(whole, Shards(directory), queries, arguments.repeats)
        record["queries_per_second"] = throughput(whole, sharded, queries, arguments.repeats)
    print(json.dumps(record, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    raise SystemExit(not record["equal"])


if __name__ == "__main__":
    main()
