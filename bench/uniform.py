"""Uniform codes, of which nothing can be pruned: ours, FAISS, multi-index hashing and the limit.

python -m bench.uniform [--sizes=1000000,10000000] [--bits=64,256] [--k=10]

All codes are uniformly random and each belongs to an item of its own. Queries are uniformly random
too, and are answered in one batch by one thread. The engines take turns, and the time is the median
over the rounds, in microseconds of CPU time per query (`time.thread_time`). The plain scan is the
bucket index as it answers single queries: each query reads all keys on its own. The limit is a loop
that XORs words in the L2 cache and counts their bits, as many as a query compares; a scan cannot be
faster. All distances of the first 20 queries are compared with those of exhaustive search.

Multi-index hashing (Norouzi, Punjani and Fleet, *Fast Exact Search in Hamming Space with
Multi-Index Hashing*, TPAMI 2014) is written here for codes of 64 bits. Each of three parts of a
code, of 21 or 22 bits, has a table of all codes, sorted by that part. A query visits the buckets of
the parts by ascending distance, and stops as soon as no code that it has not met can be nearer than
the k-th. The codes lie in the tables themselves, and buckets are fetched 32 at a time, so that
accesses to memory overlap.
"""

import argparse
import json
import os
from pathlib import Path

import faiss
import numpy as np

from bench import index, limits
from mch_jax.index import BucketIndex, segment
from mch_jax.kernels.bits import hamming, popcount, prefetch
from mch_jax.kernels.jit import kernel, leaf

RESULTS = Path(__file__).parent / "results"
OURS, SCAN, FLAT = "mch_jax BucketIndex", "the same, query by query", "FAISS IndexBinaryFlat"
HASHING, LIMIT = "multi-index hashing", "limit of XOR and popcount"
PARTS = ((0, 21), (21, 21), (42, 22))  # first bit and number of bits
FETCHED, CHECKED, NUM_QUERIES, LIMIT_WORDS = 32, 20, 128, 2**15


def tables(words):
    """Returns the codes sorted by each part, and where each value of the part begins."""
    result = []
    for first, size in PARTS:
        part = (words >> np.uint64(first)).astype(np.int64) & ((1 << size) - 1)
        starts = np.zeros((1 << size) + 1, np.uint32)
        np.cumsum(np.bincount(part, minlength=1 << size), out=starts[1:])
        result.append((words[np.argsort(part, kind="stable")], starts))
    return tuple(result)


@leaf
def _next_flips(flips):
    """Returns the next larger mask with as many bits set (Gosper)."""
    low = flips & -flips
    carry = flips + low
    return carry | (((flips ^ carry) // low) >> 2)


@leaf
def _read_bucket(codes, start, stop, query, number, radius, counts, farthest):
    """Counts the distances of a bucket's codes that were not met in a bucket visited before.

    Args:
      codes: The codes of a table.
      start: First code of the bucket.
      stop: End of the bucket.
      query: The query's code.
      number: Number of the part by which the table is sorted.
      radius: Distance of the bucket from the query in this part.
      counts: Number of codes met at each distance; changed.
      farthest: Distance beyond which codes need not be counted.
    """
    for code in codes[start:stop]:
        distance = hamming(code, query)
        if distance > farthest:
            continue
        is_new = True
        for other in range(3):
            first, size = 21 * other, 21 + other // 2
            part = (code ^ query) >> np.uint64(first) & np.uint64((1 << size) - 1)
            apart = np.int64(popcount(part))
            is_new = is_new and not (apart < radius or (apart == radius and other < number))
        counts[distance] += is_new


@kernel
def _nearest_by_parts(three, queries, k, distance):
    """Fills the k smallest distances of each query by multi-index hashing."""
    counts = np.zeros(65, np.int64)
    starts, stops = np.empty(FETCHED, np.int64), np.empty(FETCHED, np.int64)
    buckets = np.empty(FETCHED, np.int64)
    for m in range(queries.size):
        counts[:] = 0
        farthest, complete = 64, -1
        while counts[: complete + 1].sum() < k:
            complete += 1
            radius, number = complete // 3, complete % 3
            if number == 0:
                codes, bounds = three[0]
            elif number == 1:
                codes, bounds = three[1]
            else:
                codes, bounds = three[2]
            size = 21 + number // 2
            if radius > size:
                continue
            own = np.int64(queries[m] >> np.uint64(21 * number)) & ((1 << size) - 1)
            flips = (1 << radius) - 1
            last = flips << (size - radius)
            more = True
            while more:
                num = 0
                while more and num < FETCHED:
                    buckets[num] = own ^ flips
                    prefetch(bounds, buckets[num])
                    num += 1
                    more = flips != last
                    if more:
                        flips = _next_flips(flips)
                for i in range(num):
                    starts[i], stops[i] = bounds[buckets[i]], bounds[buckets[i] + 1]
                    prefetch(codes, starts[i])
                for i in range(num):
                    _read_bucket(
                        codes, starts[i], stops[i], queries[m], number, radius, counts, farthest
                    )
            met = 0
            for d in range(farthest + 1):
                met += counts[d]
                if met >= k:
                    farthest = d
                    break
        filled = 0
        for d in range(65):
            for _ in range(min(counts[d], k - filled)):
                distance[m, filled] = d
                filled += 1


def exhaustive(codes, queries, k):
    """Returns the k smallest distances of each query."""
    result = []
    for query in queries.view(np.uint64):
        distance = np.bitwise_count(codes.view(np.uint64) ^ query).sum(1, dtype=np.int64)
        result.append(np.sort(np.partition(distance, k - 1)[:k]).tolist())
    return result


def measure(num_codes, num_bits, k, repeats):
    """Returns the microseconds per query of each engine, after checking its distances."""
    rng = np.random.default_rng(num_bits)
    codes = rng.integers(0, 256, (num_codes, num_bits // 8), np.uint8)
    queries = rng.integers(0, 256, (NUM_QUERIES, num_bits // 8), np.uint8)
    ours = BucketIndex.build(codes, np.arange(num_codes), num_bits)
    flat = faiss.IndexBinaryFlat(num_bits)
    flat.add(codes)
    together = segment.MIN_BYTES_TOGETHER

    def alone(own=queries):
        segment.MIN_BYTES_TOGETHER = 2**62
        try:
            return ours.search(own, k, threads=1).distance
        finally:
            segment.MIN_BYTES_TOGETHER = together

    limit_words = segment.cache_aligned(LIMIT_WORDS)
    limit_words[:] = np.arange(LIMIT_WORDS)
    turns = -(-NUM_QUERIES * num_codes * num_bits // 64 // LIMIT_WORDS)
    calls = {
        OURS: lambda own=queries: ours.search(own, k, threads=1).distance,
        SCAN: alone,
        FLAT: lambda own=queries: flat.search(own, k)[0],
    }
    if num_bits == 64:
        three = tables(codes.view(np.uint64)[:, 0])

        def by_parts(own=queries):
            distance = np.empty((len(own), k), np.int64)
            _nearest_by_parts(three, own.view(np.uint64)[:, 0], k, distance)
            return distance

        calls[HASHING] = by_parts
    truth = exhaustive(codes, queries[:CHECKED], k)
    for name, call in calls.items():
        if call(queries[:CHECKED]).tolist() != truth:
            raise SystemExit(f"{name}: a distance is wrong")
    calls[LIMIT] = lambda: limits.count_bits(limit_words, np.uint64(1), turns)
    spent = index.rounds(calls, repeats)
    us = {name: 1e6 * seconds / NUM_QUERIES for name, seconds in spent.items()}
    return {"codes": num_codes, "bits": num_bits, "k": k, "load": os.getloadavg()[0], "us": us}


def markdown(records):
    """Returns the table."""
    lines = [
        "# Uniform codes", "", __doc__.split("\n\n", 2)[2].strip(), "",
        f"{index.processor()}, FAISS {faiss.__version__}.", "",
        "| codes | bits | ours | query by query | Flat | multi-index hashing | limit | "
        "Flat / ours | limit / ours | ours / hashing | load of the machine |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for record in records:
        us = record["us"]
        ours, hashing = us[OURS], us.get(HASHING)
        lines.append(
            f"| {record['codes']:,} | {record['bits']} | {ours:.0f} | {us[SCAN]:.0f} | "
            f"{us[FLAT]:.0f} | {f'{hashing:.0f}' if hashing else ''} | {us[LIMIT]:.0f} | "
            f"{us[FLAT] / ours:.2f} | {us[LIMIT] / ours:.2f} | "
            f"{f'{ours / hashing:.2f}' if hashing else ''} | {record['load']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    """Measures every size and writes uniform.json and uniform.md after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000000,10000000", help="numbers of codes")
    parser.add_argument("--bits", default="64,256")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the results")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    records = []
    for num_bits in map(int, args.bits.split(",")):
        for num_codes in map(int, args.sizes.split(",")):
            records.append(measure(num_codes, num_bits, args.k, args.repeats))
            text = json.dumps({"processor": index.processor(), "records": records}, indent=1)
            (args.out / "uniform.json").write_text(text + "\n")
            (args.out / "uniform.md").write_text(markdown(records))
            print(records[-1], flush=True)


if __name__ == "__main__":
    main()
