"""What two threads gain in the bucket index, beside what they gain in loops of arithmetic.

python -m bench.threads [--sizes=1000000,10000000]

The codes are those of bench/index.py, with 64 bits. Each case is answered by one thread and by two
in turn, and the table has medians of wall-clock milliseconds per batch. Other processes on a core
would hide any gain. The process therefore takes both cores in bursts of a second at most
(SCHED_FIFO, on Linux, as root) and rests longer than that between them; where this is not allowed,
measure on an idle machine. Two controls say what the machine gives: a loop of integer arithmetic,
which needs no memory, and one that reads 256 MB. The last column is what 16 threads would gain
by Amdahl's law, if the share of the work that is not divided is the one that the gain of two shows.
"""

import argparse
import contextlib
import functools
import os
import statistics
import threading
import time
from pathlib import Path

import numpy as np

from bench import index
from mch_jax.index import BucketIndex
from mch_jax.kernels.jit import kernel

RESULTS = Path(__file__).parent / "results"


@kernel
def _arithmetic(count):
    """Returns a result of `count` steps of a generator of random numbers (xorshift)."""
    state = np.uint64(88172645463325252)
    for _ in range(count):
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
    return state


@kernel
def _total(words, repeats):
    """Returns the sum of an array, read several times."""
    total = np.uint64(0)
    for i in range(repeats):
        for word in words:
            total += word ^ np.uint64(i)
    return total


def side_by_side(*calls):
    """Makes the calls at once, each in a Python thread."""
    workers = [threading.Thread(target=call) for call in calls]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


@contextlib.contextmanager
def first_in_line():
    """Runs the threads of this process before those of others, where that is allowed."""

    def schedule(policy, priority):
        for thread in os.listdir("/proc/self/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(int(thread), policy, os.sched_param(priority))

    try:
        schedule(os.SCHED_FIFO, 1)
    except (AttributeError, PermissionError, FileNotFoundError):
        yield
        return
    try:
        yield
    finally:
        schedule(os.SCHED_OTHER, 0)


def seconds(one, two, rounds=9):
    """Returns the median seconds of two calls that take turns, and the median of their ratios."""
    spent = []
    for call in (one, two):
        call()
    for _ in range(rounds):
        times = []
        for call in (one, two):
            with first_in_line():
                start = time.perf_counter()
                call()
                times.append(time.perf_counter() - start)
            time.sleep(1.5 * times[-1])
        spent.append(times)
    first, second = (statistics.median(times) for times in zip(*spent, strict=True))
    return first, second, statistics.median(a / b for a, b in spent)


def controls():
    """Returns the cases that show what the machine gives: work of one thread, and of two."""
    words = np.ones(2**25, np.uint64)
    parts = words[: 2**24], words[2**24 :]
    yield (
        "integer arithmetic",
        lambda: _arithmetic(60_000_000),
        lambda: side_by_side(*[functools.partial(_arithmetic, 30_000_000)] * 2),
    )
    yield (
        "reading 256 MB",
        lambda: _total(words, 5),
        lambda: side_by_side(*(functools.partial(_total, part, 5) for part in parts)),
    )


def cases(ours, queries, margins, k=10):
    """Returns the cases of an index: a batch by one thread and by two, or halves side by side."""
    scale = 1 if len(ours) < 5e6 else 4
    few, fewer = queries[: 5000 // scale], queries[: 2500 // scale**2]
    batches = {
        f"search, k = {k}": lambda t: ours.search(queries, k, t),
        "within radius 1": lambda t: ours.within(few, 1, t),
        "within radius 2": lambda t: ours.within(fewer, 2, t),
        "probe, 33 buckets": lambda t: ours.probe(few, margins[: len(few)], 33, threads=t),
        f"probe, 33 buckets, k = {k}": lambda t: ours.probe(queries, margins, 33, k, t),
    }
    for name, call in batches.items():
        yield name, functools.partial(call, 1), functools.partial(call, 2)
    for size in (len(queries) // 2, 64, 8, 1):

        def serve(part, size=size):
            for start in range(0, min(len(part), 4096), size):
                ours.search(part[start : start + size], k, threads=1)

        halves = [functools.partial(serve, part) for part in np.array_split(queries, 2)]
        name = f"search from two Python threads, {size:,} queries per call"
        yield (
            name,
            lambda halves=halves: [half() for half in halves],
            lambda h=halves: side_by_side(*h),
        )


def main():
    """Measures, prints and writes threads.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default="1000000,10000000", help="numbers of images")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    lines = [
        "# Threads of the bucket index", "", __doc__.split("\n\n", 2)[2].strip(), "",
        f"{index.processor()}, {os.cpu_count()} cores.", "",
        "| images | what | one thread, ms | two, ms | gain | of 16, expected |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip

    def add(images, name, one, two):
        first, second, gain = seconds(one, two)
        serial = min(max(2 / gain - 1, 0), 1)
        many = "" if "Python" in name or not images else f"{1 / (serial + (1 - serial) / 16):.0f}"
        lines.append(
            f"| {images} | {name} | {1e3 * first:.1f} | {1e3 * second:.1f} | {gain:.2f} | {many} |"
        )
        print(lines[-1], flush=True)

    for case in controls():
        add("", *case)
    for size in map(int, arguments.sizes.split(",")):
        codes, item, queries = index.clustered_codes(size, 20000)
        margins = np.random.default_rng(1).exponential(size=(20000, 64)).astype(np.float32)
        ours = BucketIndex.build(codes, item, 64)
        for case in cases(ours, queries, margins):
            add(f"{size:,}", *case)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "threads.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
