"""Speed and memory of the bucket index, compared with every FAISS index of binary codes.

python bench/index.py [--sizes=117218,1000000,10000000] [--codes=RUN/codes/database.npz] [--k=10]

The synthetic codes have 64 bits. There are 80 random centres, whose popularity falls as rank^-0.7.
A code is a centre with 5 % of its bits flipped, and 10 % of the codes are uniform noise. An image
has 1 to 3 codes, 1.5 on average. Queries are drawn in the same way. In the *skewed* sets the
popularity follows a Zipf law of exponent 1.7, cut at rank 80, so that about half of all codes lie
around one centre, as in many collections of photos. Everything runs in one thread.
The engines take turns on the same batch of queries. In its turn, an engine answers the batch again
and again for .2 s. The time is the median over the rounds, in microseconds of CPU time per query
(`time.thread_time`), which other work on the machine disturbs least. The k distances of the first
50 queries are compared with exhaustive search over distinct images. FAISS knows codes but not
images: it is asked for as many codes as k images can have, and the time to drop repeated images is
not charged to it. Bytes are those of our arrays, and the growth
of the process while FAISS adds the codes.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import faiss
import matplotlib as mpl
import numpy as np

from mch_jax.files import codes_file
from mch_jax.index import BucketIndex
from mch_jax.kernels import search as search_kernels

mpl.use("agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
OURS, FLAT = "mch_jax BucketIndex", "FAISS IndexBinaryFlat"
CHECKED = 50  # queries whose answers are compared with exhaustive search
# Targets by number of images: times faster than IndexBinaryFlat, and bytes per code.
AIMS = {117_218: (20, 30), 1_000_000: (80, 30), 10_000_000: (100, 25)}
BUILD_AIM = 15e6 / 60  # codes per second
TITLES = ("synthetic", "skewed")
MOST_SKEWED = 1_000_000  # images of the largest skewed set


def clustered_codes(
    num_images, num_queries, num_bits=64, flips=0.05, noise=0.1, seed=0, skewed=False
):
    """Returns clustered codes uint8 [c, bytes], their items int64 [c], and query codes."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**num_bits, 80, np.uint64)
    popularity = np.arange(1, 81) ** -0.7
    popularity /= popularity.sum()

    def draw(count):
        if skewed:
            words = centres[np.minimum(rng.zipf(1.7, count), 80) - 1]
        else:
            words = centres[rng.choice(80, count, p=popularity)]
        for bit in range(num_bits):
            flip = rng.random(count, np.float32) < flips
            words ^= flip.astype(np.uint64) << np.uint64(bit)
        is_noise = rng.random(count) < noise
        words[is_noise] = rng.integers(0, 2**num_bits, is_noise.sum(), np.uint64)
        return words.view(np.uint8).reshape(-1, 8)[:, : num_bits // 8].copy()

    item = np.repeat(np.arange(num_images), rng.choice(3, num_images, p=[0.6, 0.3, 0.1]) + 1)
    return draw(len(item)), item, draw(num_queries)


def binary_hash(num_bits, bits, flips):
    """Returns a FAISS IndexBinaryHash of the first `bits` bits that flips up to `flips` of them."""
    index = faiss.IndexBinaryHash(num_bits, bits)
    index.nflip = flips
    return index


def multi_hash(num_bits, flips):
    """Returns a FAISS IndexBinaryMultiHash with substrings of 16 bits."""
    index = faiss.IndexBinaryMultiHash(num_bits, num_bits // 16, 16)
    index.nflip = flips
    return index


def inverted(num_bits):
    """Returns a FAISS IndexBinaryIVF that reads 8 of its 256 lists."""
    index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(num_bits), num_bits, 256)
    index.nprobe = 8
    return index


def engines(num_bits, num_codes):
    """Returns a function for each FAISS index that does not take minutes at this size."""
    every = {
        FLAT: (faiss.IndexBinaryFlat, None),
        "FAISS IndexBinaryHash b=16 nflip=2": (lambda q: binary_hash(q, 16, 2), None),
        f"FAISS IndexBinaryHash b={num_bits} nflip=1": (lambda q: binary_hash(q, q, 1), 2e6),
        "FAISS IndexBinaryMultiHash nflip=1": (lambda q: multi_hash(q, 1), 2e6),
        "FAISS IndexBinaryIVF 8/256": (inverted, 2e6),
        "FAISS IndexBinaryHNSW": (lambda q: faiss.IndexBinaryHNSW(q, 16), 2e5),
    }
    fits = {name: make for name, (make, most) in every.items() if not most or num_codes <= most}
    return {name: make for name, make in fits.items() if num_bits >= 32 or "Multi" not in name}


def processor():
    """Returns the name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def resident():
    """Returns the resident memory of this process in bytes, after freed memory is released."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def rounds(calls, repeats=9, least=0.2):
    """Returns the median CPU seconds of each call. Their order rotates from round to round.

    In its turn, a call is repeated until `least` seconds have passed, and the mean counts, so that
    a short call is not measured with nothing but the data of others in the caches.
    """
    spent = {name: [] for name in calls}
    for call in calls.values():
        call()
    names = list(calls)
    for turn in range(repeats):
        first = turn % len(names)  # no call always follows the same one and finds its cache
        for name in names[first:] + names[:first]:
            start, count, passed = time.thread_time(), 0, 0.0
            while passed < least:
                calls[name]()
                count, passed = count + 1, time.thread_time() - start
            spent[name].append(passed / count)
    return {name: statistics.median(times) for name, times in spent.items()}


def distinct_distances(distance, row, item, k):
    """Returns the k smallest distances of distinct items among FAISS's answers; misses are -1."""
    nearest = {}
    for d, r in zip(distance, row, strict=True):
        if r >= 0:
            nearest[int(item[r])] = min(int(d), nearest.get(int(item[r]), int(d)))
    found = sorted(nearest.values())[:k]
    return found + [-1] * (k - len(found))


def exhaustive(codes, item, queries, k):
    """Returns the k smallest distances of distinct items by exhaustive search."""
    words, starts = as_words(codes), np.flatnonzero(np.diff(item, prepend=-1))
    nearest = (
        np.minimum.reduceat(np.bitwise_count(words ^ query), starts) for query in as_words(queries)
    )
    return [np.sort(np.partition(near, k - 1)[:k]).astype(int).tolist() for near in nearest]


def as_words(codes):
    """Returns codes as uint64."""
    wide = np.zeros((len(codes), 8), np.uint8)
    wide[:, : codes.shape[1]] = codes
    return wide.view(np.uint64)[:, 0]


def compare(ours, codes, item, queries, k, build):
    """Returns the measurements of each engine, and FAISS's indexes."""
    num_bits = 8 * codes.shape[1]  # FAISS takes whole bytes; the padding makes no difference
    few = queries[: max(CHECKED, min(len(queries), int(2e8 / len(codes))))]
    most = k * int(np.bincount(item).max())
    truth = exhaustive(codes, item, few[:CHECKED], k)
    rows = [{"engine": OURS, "build": build, "bytes": ours.nbytes / len(codes)}]
    calls = {OURS: lambda: ours.search(queries, k, threads=1)}
    answers, indexes = {OURS: ours.search(few[:CHECKED], k).distance.tolist()}, {}
    for name, make in engines(num_bits, len(codes)).items():
        before, start = resident(), time.perf_counter()
        index = indexes[name] = make(num_bits)
        if not index.is_trained:
            index.train(codes)
        index.add(codes)
        build = time.perf_counter() - start
        growth = max(resident() - before, 0) / len(codes)
        rows.append({"engine": name, "build": build, "bytes": growth})
        calls[name] = lambda index=index: index.search(few, most)
        found = index.search(few[:CHECKED], most)
        answers[name] = [
            distinct_distances(one, two, item, k) for one, two in zip(*found, strict=True)
        ]
    spent = rounds(calls)
    for row in rows:
        name = row["engine"]
        row["us"] = 1e6 * spent[name] / len(queries if name == OURS else few)
        row["exact"] = float(np.mean([a == b for a, b in zip(answers[name], truth, strict=True)]))
    return rows, indexes


def radii(ours, codes, queries, indexes):
    """Returns CPU microseconds per query for all items within radius 0, 1 and 2."""
    num_bits = 8 * codes.shape[1]
    theirs = indexes.get(f"FAISS IndexBinaryHash b={num_bits} nflip=1")
    if theirs is None:
        theirs = binary_hash(num_bits, num_bits, 0)
        theirs.add(codes)
    result = []
    for radius in range(3):
        theirs.nflip = radius
        few = queries[: len(queries) if len(codes) < 5e6 or radius == 0 else 100]
        calls = {
            "ours": lambda radius=radius, few=few: ours.within(few, radius, threads=1),
            "faiss": lambda radius=radius, few=few: theirs.range_search(few, radius + 1),
        }
        spent = {name: 1e6 * seconds / len(few) for name, seconds in rounds(calls).items()}
        result.append({"radius": radius, **spent})
    return result


def single_query(ours, queries, k):
    """Returns the median wall-clock microseconds of one call from Python, and of its kernel."""
    spent, inside = [], []
    kernel = search_kernels.nearest_items

    def clocked(*arguments):
        start = time.perf_counter()
        kernel(*arguments)
        inside.append(time.perf_counter() - start)

    search_kernels.nearest_items = clocked
    for m in range(len(queries)):
        start = time.perf_counter()
        ours.search(queries[m : m + 1], k)
        spent.append(time.perf_counter() - start)
    search_kernels.nearest_items = kernel
    return 1e6 * statistics.median(spent), 1e6 * statistics.median(inside)


def opening(ours):
    """Returns the milliseconds to open a saved index, with and without verifying checksums."""
    result = []
    with tempfile.TemporaryDirectory(dir=RESULTS) as directory:
        ours.save(directory)
        for verify in (True, False):
            times = []
            for _ in range(5):
                start = time.perf_counter()
                BucketIndex.open(directory, verify)
                times.append(time.perf_counter() - start)
            result.append(1e3 * statistics.median(times))
    return result


def threads(ours, queries, k):
    """Returns how many times faster two threads answer a batch than one, in wall-clock time."""
    many, best = np.tile(queries, (4, 1)), {1: np.inf, 2: np.inf}
    for _ in range(7):
        for count in best:
            start = time.perf_counter()
            ours.search(many, k, threads=count)
            best[count] = min(best[count], time.perf_counter() - start)
    return best[1] / best[2]


def worst_case(num_codes=1_500_000):
    """Returns CPU microseconds per query on uniform random codes."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (num_codes, 8), np.uint8)
    queries = rng.integers(0, 256, (100, 8), np.uint8)
    ours, flat = BucketIndex.build(codes, np.arange(num_codes), 64), faiss.IndexBinaryFlat(64)
    flat.add(codes)
    scan = BucketIndex(64, ours._segments._replace(base=one_pivot(ours._segments.base)))
    calls = {
        "ours": lambda: ours.search(queries, 10, threads=1),
        "scan": lambda: scan.search(queries, 10, threads=1),
        "flat": lambda: flat.search(queries, 10),
    }
    spent = rounds(calls, 25)
    return {name: 1e6 * seconds / len(queries) for name, seconds in spent.items()}


def one_pivot(segment):
    """Returns the segment with all codes in one ring of one pivot, so that nothing is pruned."""
    rings = np.full(66, len(segment.keys), np.uint32)
    rings[:33] = 0
    return segment._replace(pivots=segment.pivots[:1].copy(), rings=rings)


def measure(title, codes, item, queries, num_bits, k):
    """Returns the measurements of one set of codes."""
    BucketIndex.build(codes[:100], item[:100], num_bits).search(queries[:100], 1)  # compiles
    start = time.perf_counter()
    ours = BucketIndex.build(codes, item, num_bits)
    build = time.perf_counter() - start
    print(f"{title}: {len(codes):,} codes, built in {build:.1f} s", flush=True)
    record = {"title": title, "codes": len(codes), "images": len(np.unique(item)), "k": k}
    record["engines"], indexes = compare(ours, codes, item, queries, k, build)
    record["us_per_call"], record["us_per_kernel"] = single_query(ours, queries[:500], k)
    record["open_ms"], record["open_unverified_ms"] = opening(ours)
    record["two_threads"] = threads(ours, queries, k)
    record["within"] = radii(ours, codes, queries, indexes)
    return record


def aims(records, worst):
    """Returns table lines of every target, the value measured, and whether the target is met."""
    rows = []

    def row(what, aim, measured, met):
        rows.append(f"| {what} | {aim} | {measured} | {'met' if met else 'missed'} |")

    for record in records:
        ours, flat = record["engines"][:2]
        if record["title"] in TITLES and record["images"] in AIMS:
            ratio, bytes_a_code = AIMS[record["images"]]
            name = f"{record['title']}, {record['images']:,} images"
            times = flat["us"] / ours["us"]
            row(f"{name}: IndexBinaryFlat / ours", f"{ratio}", f"{times:.1f}", times >= ratio)
            size = ours["bytes"]
            row(f"{name}: bytes per code", f"{bytes_a_code}", f"{size:.1f}", size <= bytes_a_code)
            build, most = ours["build"], record["codes"] / BUILD_AIM
            row(f"{name}: build, s", f"{most:.2f}", f"{build:.2f}", build <= most)
        first = record["within"][0]
        row(
            f"{record['title']}, {record['codes']:,} codes: radius 0, us (IndexBinaryHash)",
            f"{first['faiss']:.2f}",
            f"{first['ours']:.2f}",
            first["ours"] <= first["faiss"],
        )
        extra = record["us_per_call"] - record["us_per_kernel"]
        row(
            f"{record['title']}, {record['codes']:,} codes: Python, us",
            20,
            f"{extra:.1f}",
            extra <= 20,
        )
        exact = ours["exact"]
        row(
            f"{record['title']}, {record['codes']:,} codes: exact",
            "100%",
            f"{exact:.0%}",
            exact == 1,
        )
    times = worst["ours"] / worst["scan"]
    row("uniform random codes: ours / plain scan", "1.2", f"{times:.2f}", times <= 1.2)
    return ["| what | aim | measured | |", "| --- | --- | --- | --- |", *rows, ""]


def markdown(records, worst):
    """Returns the tables."""
    lines = ["# The bucket index against FAISS", "", __doc__.split("\n\n", 2)[2].strip(), ""]
    lines += [f"{processor()}, {os.cpu_count()} cores, FAISS {faiss.__version__}.", ""]
    lines += aims(records, worst)
    for record in records:
        us = {row["engine"]: row["us"] for row in record["engines"]}
        lines += [
            f"## {record['title']}: {record['images']:,} images, {record['codes']:,} codes, "
            f"k = {record['k']}",
            "",
            "| engine | CPU us per query | exact answers | bytes per code | build s | Flat / it |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [
            f"| {row['engine']} | {row['us']:.1f} | {row['exact']:.0%} | {row['bytes']:.1f} | "
            f"{row['build']:.2f} | {us[FLAT] / row['us']:.1f} |"
            for row in record["engines"]
        ]
        within = ", ".join(
            f"radius {row['radius']} {row['ours']:.2f} ({row['faiss']:.2f})"
            for row in record["within"]
        )
        lines += [
            "",
            f"- One call from Python takes {record['us_per_call']:.1f} us of wall-clock time, "
            f"{record['us_per_kernel']:.1f} of them in the kernel.",
            f"- Two threads are {record['two_threads']:.2f} times as fast as one.",
            f"- Opening a saved index takes {record['open_ms']:.1f} ms with checksums, "
            f"{record['open_unverified_ms']:.1f} without.",
            "- All items within a radius, in CPU us per query; in brackets FAISS IndexBinaryHash "
            f"over all bits, which repeats images: {within}.",
            "",
        ]
    lines += [
        "## Worst case: 1,500,000 uniform random codes of 64 bits, k = 10",
        "",
        f"CPU us per query: {worst['ours']:.0f}; with one pivot, which is a plain scan, "
        f"{worst['scan']:.0f}; FAISS IndexBinaryFlat {worst['flat']:.0f}.",
        "",
    ]
    return "\n".join(lines)


def figure(records, path):
    """Plots the time per query against the number of codes, with the share of exact answers."""
    plot, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    records = [record for record in records if record["title"] == "synthetic"]
    names = dict.fromkeys(row["engine"] for record in records for row in record["engines"])
    for name, marker in zip(names, "os^vDPX", strict=False):
        codes, us, exact = zip(
            *(
                (record["codes"], row["us"], f"{100 * row['exact']:.0f}")
                for record in records
                for row in record["engines"]
                if row["engine"] == name
            ),
            strict=True,
        )
        style = {"color": "black", "linewidth": 2.5, "zorder": 3} if name == OURS else {}
        label = f"{name}\n{', '.join(exact)} % exact"
        axes.loglog(codes, us, marker=marker, label=label, **style)
    axes.set_xlabel("codes (1.5 per image, 64 bits)")
    axes.set_ylabel("CPU microseconds per query, one thread")
    axes.set_title(f"{records[0]['k']} nearest images; share of exact answers, by size")
    axes.grid(which="major", alpha=0.3)
    plot.legend(fontsize=8, loc="outside right upper")
    plot.savefig(path, dpi=150)
    plt.close(plot)


def main():
    """Measures, prints and writes index.json, .md and .png."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="117218,1000000,10000000", help="numbers of images")
    parser.add_argument(
        "--codes", type=Path, nargs="*", default=[],
        help="codes files of runs to measure as well, with the query.npz beside each",
    )  # fmt: skip
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    records, worst = [], worst_case()
    for size in map(int, arguments.sizes.split(",")):
        for title in TITLES[: 2 if size <= MOST_SKEWED else 1]:
            codes, item, queries = clustered_codes(size, 1000, skewed=title == "skewed")
            records.append(measure(title, codes, item, queries, 64, arguments.k))
    for path in arguments.codes:
        file, queries = codes_file.load(path), codes_file.load(path.with_name("query.npz")).codes
        queries = queries[np.random.default_rng(0).permutation(len(queries))[:1000]]
        title = path.absolute().parents[1].name
        records.append(measure(title, file.codes, file.item, queries, file.num_bits, arguments.k))
    results = json.dumps({"records": records, "worst_case": worst}, indent=1)
    (arguments.out / "index.json").write_text(results + "\n")
    (arguments.out / "index.md").write_text(markdown(records, worst))
    figure(records, arguments.out / "index.png")
    print(markdown(records, worst))


if __name__ == "__main__":
    main()
