"""Builds, saves, opens, searches and changes an index of very many images.

python -m bench.large [--images=100000000] [--directory=DIR]

The codes are those of bench/index.py, with 64 bits and 1.5 codes per image, drawn a million images
at a time. `BucketIndex.build_from` builds the index from these blocks. Peak memory is that of the
process (VmHWM) less what it had before, and contains one block that is being drawn. Mapped pages
of the index count as memory: where the system drops them during a merge, the peak that is stated
is too low. Times are seconds of wall-clock time. FAISS's IndexBinaryFlat answers the first queries
in one thread; the k distances of distinct images of both are compared. `DIR` needs 60 bytes per
image.
"""

import argparse
import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from bench import index, measure
from mch_jax.index import BucketIndex

RESULTS = Path(__file__).parent / "results"
BLOCK_IMAGES, NUM_QUERIES, NUM_CHECKED, CHANGED = 10**6, 1000, 20, 10**5
FLIPS = 51  # of 1,024: the probability that a bit differs from that of the centre


def draw(rng, centres, count):
    """Returns clustered codes, like those of `index.clustered_codes`."""
    popularity = np.arange(1, 81) ** -0.7
    words = centres[rng.choice(80, count, p=popularity / popularity.sum())]
    flips = np.zeros(count, np.uint64)
    for digit in reversed(f"{FLIPS:010b}"):  # of the probability, the least significant first
        random = rng.integers(0, 2**64, count, np.uint64)
        flips = flips | random if digit == "1" else flips & random
    words ^= flips
    is_noise = rng.random(count) < 0.1
    words[is_noise] = rng.integers(0, 2**64, is_noise.sum(), np.uint64)
    return words.view(np.uint8).reshape(-1, 8)


def blocks(rng, centres, num_images, codes_file, items_file):
    """Yields codes and items, and writes them to two files."""
    for first in range(0, num_images, BLOCK_IMAGES):
        count = min(BLOCK_IMAGES, num_images - first)
        item = np.repeat(
            np.arange(first, first + count), rng.choice(3, count, p=[0.6, 0.3, 0.1]) + 1
        )
        codes = draw(rng, centres, len(item))
        codes_file.write(codes.data)
        items_file.write(item.astype(np.uint32).data)
        yield codes, item


class Log:
    """What was measured: seconds and peak memory of each step."""

    def __init__(self):
        self.rows = {}

    @contextlib.contextmanager
    def step(self, name):
        """Measures a step."""
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before, start = measure.resident(), time.perf_counter()
        yield
        peak = measure.resident("VmHWM") - before
        self.add(name, seconds=time.perf_counter() - start, peak_mb=max(peak, 0))

    def add(self, name, **values):
        """Adds numbers to a row and prints them."""
        self.rows.setdefault(name, {}).update(values)
        print(name, {key: round(value, 3) for key, value in values.items()}, flush=True)


def against_flat(ours, codes_path, items_path, queries, k):
    """Returns microseconds per query of IndexBinaryFlat, and whether the distances agree."""
    import faiss

    faiss.omp_set_num_threads(1)
    flat = faiss.IndexBinaryFlat(64)
    with codes_path.open("rb") as file:
        while raw := file.read(2**26):
            flat.add(np.frombuffer(raw, np.uint8).reshape(-1, 8))
    start = time.thread_time()
    distance, row = flat.search(queries, 3 * k)
    spent = time.thread_time() - start
    item_of = np.memmap(items_path, np.uint32, "r")
    expected = [
        index.distinct_distances(one, two, item_of, k)
        for one, two in zip(distance, row, strict=True)
    ]
    found = ours.search(queries, k).distance.tolist()
    return 1e6 * spent / len(queries), found == expected


def microseconds(ours, queries, k):
    """Returns the median CPU microseconds per query of a batch in one thread."""
    ours.search(queries[:100], k, threads=1)
    spent = []
    for _ in range(5):
        start = time.thread_time()
        ours.search(queries, k, threads=1)
        spent.append(time.thread_time() - start)
    return 1e6 * float(np.median(spent)) / len(queries)


def run(num_images, directory, k=10):
    """Returns the log of one size."""
    log, rng = Log(), np.random.default_rng(0)
    centres = rng.integers(0, 2**64, 80, np.uint64)
    queries = draw(rng, centres, NUM_QUERIES)
    warm = BucketIndex.build(queries, np.arange(len(queries)), 64)  # compiles the kernels
    warm.search(queries, k)
    paths, saved = (directory / "codes", directory / "items"), directory / "index"
    with paths[0].open("wb") as codes, paths[1].open("wb") as items, log.step("build_from"):
        stream = blocks(rng, centres, num_images, codes, items)
        ours = BucketIndex.build_from(stream, 64, directory)
    size, pairs = ours.nbytes, ours.num_codes
    log.add("index", pairs=pairs, mb=size / 1e6, bytes_per_code=size / pairs)
    peak = log.rows["build_from"]["peak_mb"] * 1e6
    log.add("build_from", peak_per_index=peak / size)
    with log.step("save"):
        ours.save(saved)
    del ours
    with log.step("open, checksums verified"):
        ours = BucketIndex.open(saved)
    with log.step("open, not verified"):
        ours = BucketIndex.open(saved, verify=False)
    log.add("search", us=microseconds(ours, queries, k))
    us, same = against_flat(ours, *paths, queries[:NUM_CHECKED], k)
    log.add("IndexBinaryFlat", us=us, agrees=same, times=us / log.rows["search"]["us"])
    new = np.arange(num_images, num_images + CHANGED)
    with log.step("add 100,000 codes, and the next search"):
        ours.add(draw(rng, centres, CHANGED), new)
        ours.search(queries[:1], k)
    with log.step("remove 100,000 images, and the next search"):
        ours.remove(rng.choice(num_images, CHANGED, replace=False))
        ours.search(queries[:1], k)
    log.add("search, changed", us=microseconds(ours, queries, k))
    before = ours.search(queries, k)
    with log.step("merge"):
        ours.merge()
    log.add("merge", peak_per_index=log.rows["merge"]["peak_mb"] * 1e6 / size)
    after = ours.search(queries, k)
    log.add("search, merged", us=microseconds(ours, queries, k))
    same = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    log.add("merge", agrees=same)
    with log.step("save, merged"):
        ours.save(saved)
    return {"images": num_images, **log.rows}


def main():
    """Measures, prints and adds a size to large.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10**8)
    parser.add_argument("--directory", type=Path, help="where the files are made")
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the results")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        record = run(arguments.images, directory)
    finally:
        shutil.rmtree(directory)
    path = arguments.out / "large.json"
    records = json.loads(path.read_text()) if path.exists() else []
    records = [one for one in records if one["images"] != arguments.images] + [record]
    records.sort(key=lambda one: one["images"])
    path.write_text(json.dumps(records, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
