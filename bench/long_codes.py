"""Codes of more than 64 bits: the bucket index, FAISS and usearch on the same codes in one run.

python -m bench.long_codes [--sizes=117218,1000000] [--bits=128,256,512] [--graphs=200000] [--k=10]

Clustered codes lie around 80 random centres, whose popularity falls as rank^-0.7. A code is a
centre with 5 % of its bits flipped, and 10 % of the codes are uniform noise. Uniform codes are all
noise. An image has 1 to 3 codes, 1.5 on average. Queries are drawn in the same way. Everything runs
in one thread. The engines take turns, and the time is the median over the rounds, in microseconds
of CPU time per query (`time.process_time`). The plain scan is the bucket index with all codes in
one ring, so that it reads every code with the same kernel. The other engines know codes but not
images: they are asked for as many codes as k images can have, and the time to drop repeated images
is not charged to them. Graphs (HNSW) have 16 neighbours and look at 64 candidates; they are built
for up to `--graphs` codes. Recall is the share of the k distances, of 50 queries, that exhaustive
search has too.
"""

import argparse
import collections
import json
import statistics
import time
from pathlib import Path

import faiss
import numpy as np

from bench.index import distinct_distances, processor
from mch_jax.index import BucketIndex

RESULTS = Path(__file__).parent / "results"
OURS, SCAN, FLAT = "mch_jax BucketIndex", "the same, plain scan", "FAISS IndexBinaryFlat"
CHECKED = 50
AIM, MOST_OF_SCAN = 10, 1.1  # times Flat at 256 bits and 1,000,000 images; times a plain scan


def draw(rng, centres, count, noise):
    """Returns codes uint8 [count, bytes] around the centres, some of them uniform."""
    num_bits = centres.shape[1]
    popularity = np.arange(1, len(centres) + 1) ** -0.7
    chosen = rng.choice(len(centres), count, p=popularity / popularity.sum())
    codes = np.empty((count, num_bits // 8), np.uint8)
    for start in range(0, count, 1 << 15):
        own = chosen[start : start + (1 << 15)]
        bits = centres[own] ^ (rng.random((len(own), num_bits), np.float32) < 0.05)
        is_noise = rng.random(len(own)) < noise
        bits[is_noise] = rng.random((is_noise.sum(), num_bits), np.float32) < 0.5
        codes[start : start + len(own)] = np.packbits(bits, axis=1, bitorder="little")
    return codes


def plain_scan(index):
    """Returns an index of the same codes in one ring of one pivot, so that nothing is pruned."""
    base = index._segments.base
    rings = np.full(index.num_bits + 2, len(base.offsets) - 1, np.uint32)
    rings[: index.num_bits // 2 + 1] = 0
    base = base._replace(pivots=base.pivots[:1].copy(), rings=rings)
    return BucketIndex(index.num_bits, index._segments._replace(base=base))


def usearch_index(num_bits, codes):
    """Returns a usearch index of codes, or None if usearch is not installed."""
    try:
        from usearch import index as usearch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    index = usearch.Index(
        ndim=num_bits, metric=usearch.MetricKind.Hamming, dtype=usearch.ScalarKind.B1,
        connectivity=16, expansion_search=64,
    )  # fmt: skip
    index.add(np.arange(len(codes)), codes, threads=1)
    return index


def others(codes, most, graphs):
    """Returns a search function of each other engine and the seconds to build its index."""
    num_bits, result = 8 * codes.shape[1], {}
    start = time.process_time()
    flat = faiss.IndexBinaryFlat(num_bits)
    flat.add(codes)
    result[FLAT] = (lambda queries: flat.search(queries, most)), time.process_time() - start
    if len(codes) > graphs:
        return result
    start = time.process_time()
    graph = faiss.IndexBinaryHNSW(num_bits, 16)
    graph.hnsw.efSearch = 64
    graph.add(codes)
    built = time.process_time() - start
    result["FAISS IndexBinaryHNSW"] = (lambda queries: graph.search(queries, most)), built
    start = time.process_time()
    index = usearch_index(num_bits, codes)
    if index is None:
        return result
    built = time.process_time() - start

    def search(queries, exact):
        found = index.search(queries, most, exact=exact, threads=1)
        return found.distances.astype(int), found.keys.astype(int)

    result["usearch, exact"] = (lambda queries: search(queries, True)), built
    result["usearch, HNSW"] = (lambda queries: search(queries, False)), built
    return result


def exhaustive(codes, item, queries, k):
    """Returns the k smallest distances of distinct items by exhaustive search."""
    words, starts = codes.view(np.uint64), np.flatnonzero(np.diff(item, prepend=-1))
    truth = []
    for query in queries.view(np.uint64):
        distance = np.bitwise_count(words ^ query).sum(1, dtype=np.int64)
        near = np.minimum.reduceat(distance, starts)
        truth.append(np.sort(np.partition(near, k - 1)[:k]).tolist())
    return truth


def recall(found, truth):
    """Returns the share of the true distances that were found."""
    common = [
        (collections.Counter(a) & collections.Counter(b)).total()
        for a, b in zip(found, truth, strict=True)
    ]
    return float(np.mean(common)) / len(truth[0])


def rounds(calls, repeats):
    """Returns the median CPU seconds of each call; they take turns."""
    spent = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:  # the first round warms up
                spent[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def measure(kind, num_images, num_bits, graphs, k, repeats):
    """Returns the measurements of all engines on one set of codes."""
    rng = np.random.default_rng(num_bits)
    centres = rng.random((80, num_bits)) < 0.5
    item = np.repeat(np.arange(num_images), rng.choice(3, num_images, p=[0.6, 0.3, 0.1]) + 1)
    noise = 0.1 if kind == "clustered" else 1.0
    codes, queries = (draw(rng, centres, count, noise) for count in (len(item), 200))
    BucketIndex.build(codes[:100], item[:100], num_bits).search(queries[:100], 1)  # compiles
    start = time.process_time()
    ours = BucketIndex.build(codes, item, num_bits)
    built = time.process_time() - start
    scan, few = plain_scan(ours), queries[: 200 if num_images < 5e5 else CHECKED]
    most, truth = 3 * k, exhaustive(codes, item, queries[:CHECKED], k)
    rows, calls, number = [], {}, {}
    for name, index in ((OURS, ours), (SCAN, scan)):
        own = queries if name == OURS else few
        calls[name], number[name] = (
            lambda index=index, own=own: index.search(own, k, threads=1),
            len(own),
        )
        answer = index.search(queries[:CHECKED], k).distance.tolist()
        rows.append({"engine": name, "build": built, "recall": recall(answer, truth)})
    for name, (search, seconds) in others(codes, most, graphs).items():
        calls[name], number[name] = lambda search=search: search(few), len(few)
        found = search(queries[:CHECKED])
        answer = [distinct_distances(one, two, item, k) for one, two in zip(*found, strict=True)]
        rows.append({"engine": name, "build": seconds, "recall": recall(answer, truth)})
    spent = rounds(calls, repeats)
    for row in rows:
        row["us"] = 1e6 * spent[row["engine"]] / number[row["engine"]]
    return {
        "kind": kind, "images": num_images, "codes": len(codes), "bits": num_bits, "k": k,
        "bytes": ours.nbytes / len(codes), "engines": rows,
    }  # fmt: skip


def ratios(record):
    """Returns how many times faster ours is than Flat, and its time by that of a plain scan."""
    us = {row["engine"]: row["us"] for row in record["engines"]}
    return us[FLAT] / us[OURS], us[OURS] / us[SCAN]


def markdown(records):
    """Returns the tables."""
    lines = ["# Codes of more than 64 bits", "", __doc__.split("\n\n", 2)[2].strip(), ""]
    lines += [f"{processor()}, FAISS {faiss.__version__}.", ""]
    lines += [
        f"The aims were {AIM} times the speed of Flat at 256 bits and 1,000,000 clustered images, "
        f"and never more than {MOST_OF_SCAN} times a plain scan.",
        "",
        "| codes | images | bits | Flat / ours | ours / plain scan | bytes per code |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        flat, scan = ratios(record)
        lines.append(
            f"| {record['kind']} | {record['images']:,} | {record['bits']} | {flat:.1f} | "
            f"{scan:.2f} | {record['bytes']:.1f} |"
        )
    for record in records:
        lines += [
            "",
            f"## {record['kind'].capitalize()}, {record['bits']} bits: {record['images']:,} "
            f"images, {record['codes']:,} codes, k = {record['k']}",
            "",
            "| engine | CPU us per query | recall | CPU s to build |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {row['engine']} | {row['us']:.1f} | {row['recall']:.3f} | {row['build']:.1f} |"
            for row in record["engines"]
        ]
    return "\n".join(lines) + "\n"


def main():
    """Measures every set of codes and writes the tables after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="117218,1000000")
    parser.add_argument("--bits", default="128,256,512")
    parser.add_argument("--graphs", type=int, default=200_000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    records = []
    for num_images in map(int, args.sizes.split(",")):
        for num_bits in map(int, args.bits.split(",")):
            for kind in ("clustered", "uniform"):
                records.append(
                    measure(kind, num_images, num_bits, args.graphs, args.k, args.repeats)
                )
                flat, scan = ratios(records[-1])
                print(f"{kind}, {num_images:,}, {num_bits}: {flat:.1f}, {scan:.2f}", flush=True)
                text = json.dumps({"processor": processor(), "records": records}, indent=1)
                (args.out / "long_codes.json").write_text(text + "\n")
                (args.out / "long_codes.md").write_text(markdown(records))


if __name__ == "__main__":
    main()
