"""Speed of probing buckets by quantization distance, compared with a heap in Python and with FAISS.

python -m bench.probing [--images=1000000] [--out=DIR]

The codes are those of `bench/index.py` with 32 bits, or as many uniform ones, which share almost no
bucket. Margins are absolute values of normal variables. Everything runs in one thread, the engines
take turns on the same 1,000 queries (the heap on 50), and times are medians over the rounds, in
microseconds of CPU time per query. FAISS's IndexBinaryHash over all 32 bits visits the buckets
within radius 1 or 2, 33 or 529 of them, and repeats images; no radius has 132 buckets. The heap is
a plain Python loop with a dictionary of buckets. Its items and ours are compared for the 50
queries. "Reading alone" is a loop that knows the non-empty buckets already: it reads their codes
and keeps each item once, which no search can leave out.
"""

import argparse
import functools
import heapq
import json
import os
from pathlib import Path

import faiss
import numba
import numpy as np

from bench import index as engines
from mch_jax.index import BucketIndex, probed_buckets

BUDGETS = {33: 1, 132: None, 529: 2}  # buckets, and the radius that has as many


def heap_probe(buckets, code, margins, budget):
    """Returns the items of the cheapest buckets of a query, by a heap and a dictionary."""
    bits = sorted(range(len(margins)), key=margins.__getitem__)
    heap, found = [(0.0, 0, -1)], {}
    for _ in range(budget):
        cost, mask, last = heapq.heappop(heap)
        found.update(dict.fromkeys(buckets.get(code ^ mask, ())))
        new = last + 1
        if new < len(bits):
            grown = mask | 1 << bits[new]
            heapq.heappush(heap, (cost + margins[bits[new]], grown, new))
            if last >= 0:
                swapped = cost + margins[bits[new]] - margins[bits[last]]
                heapq.heappush(heap, (swapped, grown ^ 1 << bits[last], new))
    return list(found)


@numba.njit
def read_alone(items, bounds, sizes, bits, found, costs):
    """Reads the items of the non-empty buckets of each query, and keeps each item once."""
    position = 0
    for m in range(sizes.size - 1):
        used = 0
        for bucket in range(sizes[m], sizes[m + 1]):
            first = used
            for i in range(bounds[bucket], bounds[bucket + 1]):
                one = items[i]
                found[used] = one
                bit, old = np.uint64(1) << np.uint64(one & 63), bits[one >> 6]
                bits[one >> 6] = old | bit
                used += old & bit == 0
            costs[first:used] = bucket
        for one in found[:used]:
            bits[one >> 6] = 0
        position += used
    return position


def reading(index, queries, margins, budget):
    """Returns a call of `read_alone` on the buckets that are looked at for each query."""
    items, lengths, sizes = [], [], [0]
    for m in range(len(queries)):
        traced = probed_buckets(index, queries[m : m + 1], margins[m : m + 1], budget)
        held = np.diff(traced.offsets)
        lengths.append(held[held > 0])
        items.append(traced.item)
        sizes.append(sizes[-1] + int((held > 0).sum()))
    every, largest = np.concatenate(items), max(map(len, items))
    bounds = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    bits = np.zeros(int(every.max(initial=0)) // 64 + 1, np.uint64)
    buffers = np.empty(largest + 1, np.int64), np.empty(largest + 1, np.float32)
    return functools.partial(read_alone, every, bounds, np.array(sizes), bits, *buffers)


def compare(title, codes, item, queries, margins):
    """Returns the measurements of one set of codes, one record per number of buckets."""
    ours, theirs, buckets = BucketIndex.build(codes, item, 32), engines.binary_hash(32, 32, 1), {}
    theirs.add(codes)
    for code, one in zip(engines.as_words(codes).tolist(), item.tolist(), strict=True):
        buckets.setdefault(code, []).append(one)
    few = list(zip(engines.as_words(queries[:50]).tolist(), margins[:50].tolist(), strict=True))

    def by_heap(budget):
        return [heap_probe(buckets, code, margin, budget) for code, margin in few]

    records = []
    for budget, radius in BUDGETS.items():
        calls = {
            "ours": functools.partial(ours.probe, queries, margins, budget, threads=1),
            "heap": functools.partial(by_heap, budget),
            "reading": reading(ours, queries, margins, budget),
        }
        if radius:
            theirs.nflip = radius
            calls["faiss"] = functools.partial(theirs.range_search, queries, 33)
        spent = {
            name: 1e6 * time / (len(few) if name == "heap" else len(queries))
            for name, time in engines.rounds(calls).items()
        }
        found = ours.probe(queries, margins, budget)
        same = [
            sorted(found.item[found.offsets[m] : found.offsets[m + 1]].tolist()) == sorted(items)
            for m, items in enumerate(by_heap(budget))
        ]
        counts = {"nonempty": found.nonempty.mean(), "candidates": found.candidates.mean()}
        record = {"codes": title, "buckets": budget, "same": float(np.mean(same))}
        records.append(record | counts | spent)
    return records


def markdown(records, num_images):
    """Returns the table."""
    lines = ["# Probing by quantization distance", "", __doc__.split("\n\n", 2)[2].strip(), ""]
    lines += [
        f"{engines.processor()}, {os.cpu_count()} cores, FAISS {faiss.__version__}, "
        f"{num_images:,} images.",
        "",
        "| codes | buckets | non-empty | codes read | ours | reading alone | IndexBinaryHash "
        "| heap | IndexBinaryHash / ours | heap / ours | same items |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in records:
        theirs = f"{row['faiss']:.1f}" if "faiss" in row else ""
        ratio = f"{row['faiss'] / row['ours']:.1f}" if "faiss" in row else ""
        lines.append(
            f"| {row['codes']} | {row['buckets']} | {row['nonempty']:.1f} | "
            f"{row['candidates']:,.0f} | {row['ours']:.1f} | {row['reading']:.1f} | {theirs} | "
            f"{row['heap']:,.0f} | {ratio} | {row['heap'] / row['ours']:.0f} | {row['same']:.0%} |"
        )
    return "\n".join([*lines, ""])


def main():
    """Measures, prints and writes probing.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=engines.RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    codes, item, queries = engines.clustered_codes(arguments.images, 1000, 32)
    rng = np.random.default_rng(1)
    uniform = rng.integers(0, 256, codes.shape, np.uint8)
    margins = np.abs(rng.standard_normal((1000, 32))).astype(np.float32)
    records = compare("clustered", codes, item, queries, margins)
    records += compare("uniform", uniform, item, uniform[:1000], margins)
    (arguments.out / "probing.json").write_text(json.dumps(records, indent=1) + "\n")
    (arguments.out / "probing.md").write_text(markdown(records, arguments.images))
    print(markdown(records, arguments.images))


if __name__ == "__main__":
    main()
