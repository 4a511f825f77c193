"""Benchmarks of evaluation: the histogram against FAISS, mAP, and all measures at COCO's size."""

import time

import numpy as np

from bench import inputs, limits, measure
from mch_jax import codes, histograms, metrics, pairs
from mch_jax.evaluation import evaluate
from mch_jax.files import code_sets
from mch_jax.index import words_from_bytes
from mch_jax.kernels import histogram as histogram_kernels
from mch_jax.kernels.jit import kernel

KS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@kernel
def distances_alone(queries, codes, near_all):
    """Computes the distance of each item to each query, and discards it."""
    size = near_all.size
    for start in range(0, codes.shape[1], histogram_kernels.BLOCK):
        end = min(start + histogram_kernels.BLOCK, codes.shape[1])
        for m in range(queries.size):
            for first in range(start, end, size):
                last = min(first + size, end)
                near = near_all[: last - first]
                histogram_kernels.fill_distances(codes[0, first:last], queries[m], near)
                for t in range(1, codes.shape[0]):
                    histogram_kernels.lower_to_distances(codes[t, first:last], queries[m], near)


def evaluator(quick: bool) -> list[measure.Row]:
    """Measures the histogram of 1,000 queries x 120,000 items x 6 codes, and FAISS on them."""
    num_queries, num_items = (100, 20_000) if quick else (1000, 120_000)
    query, database = inputs.retrieval(num_queries, num_items, 6)
    threads = measure.num_threads()
    calls = {"ours": lambda: evaluate.histogram(query, database, threads)}
    faiss, peer = measure.faiss_or_none(), "FAISS IndexBinaryFlat, k = 100"
    if faiss is not None:
        flat = faiss.IndexBinaryFlat(64)
        flat.add(database.codes)
        calls[peer] = lambda: flat.search(query.codes, 100)
    timings = measure.interleaved(calls, 3 if quick else 7)
    work = num_queries * num_items * 6 / 1e9
    limit = ("XOR and popcount of words in the L2, G/s", limits.popcounts_per_second() / 1e9)
    rows = [
        measure.row(
            "evaluator: relevance and distance histogram", work, "G distances/s", timings,
            peer=peer, least=2.5, limit=limit,
            memory_mb=measure.peak_memory(calls["ours"]),
            note=f"{num_queries:,} queries x {num_items:,} images x 6 codes, 64 bits; under 50 MB. "
            "FAISS returns 100 codes per query, which are not yet deduplicated by image.",
        )
    ]  # fmt: skip
    relevant = (query.labels.astype(np.float32) @ database.labels.T.astype(np.float32)) > 0
    given = query.codes, database.codes, database.item, relevant, 64
    calls["ours"] = lambda: metrics.histogram(*given, threads=threads)
    timings = measure.interleaved(calls, 3 if quick else 7)
    rows.append(
        measure.row(
            "metrics.histogram, relevance as a matrix", work, "G distances/s", timings,
            peer=peer, least=2.5, limit=limit, memory_mb=measure.peak_memory(calls["ours"]),
            note="the public function, arrays as in a codes file; the same codes and peer as the "
            "evaluator",
        )
    )  # fmt: skip
    words = words_from_bytes(query.codes, 64)
    items = words_from_bytes(database.codes, 64).reshape(num_items, 6).T.copy()
    near = np.empty(histogram_kernels.PIECE, np.uint64)
    if threads == 1:
        timings = measure.interleaved({"ours": lambda: distances_alone(words, items, near)}, 5)
        alone = measure.row(
            "evaluator: distance part alone", work, "G distances/s", timings, limit=limit,
            note="minimum over six codes included",
        )  # fmt: skip
        alone.target = ">= 30 % of the limit"
        alone.met = alone.share is not None and alone.share >= 0.3
        rows.append(alone)
    return rows


def argsort_ap(query, database, rows):
    """Returns average precision by sorting with NumPy, where ties keep their order."""
    words, items = (
        words_from_bytes(query.codes, 64),
        words_from_bytes(database.codes, 64).reshape(-1, 6),
    )
    scores = []
    for row in rows:
        distance = np.bitwise_count(items ^ words[row]).min(1)
        relevant = (database.labels @ query.labels[row]) > 0
        found = relevant[np.argsort(distance, kind="stable")]
        precision = found.cumsum() / np.arange(1, len(found) + 1)
        scores.append((precision * found).sum() / max(found.sum(), 1))
    return np.array(scores)


def average_precision(quick: bool) -> list[measure.Row]:
    """Measures mAP by histogram and closed form, against sorting each query with NumPy."""
    num_queries, num_items = (100, 20_000) if quick else (1000, 117_218)
    query, database = inputs.retrieval(num_queries, num_items, 6)
    few = range(5 if quick else 20)
    threads = measure.num_threads()

    def ours():
        counts = evaluate.histogram(query, database, threads)
        return metrics.mean_average_precision(counts)

    timings = measure.interleaved(
        {"ours": ours, "NumPy, argsort a query": lambda: argsort_ap(query, database, few)}, 3
    )
    counts = evaluate.histogram(query, database)
    gap = np.abs(metrics.average_precision(counts)[list(few)] - argsort_ap(query, database, few))
    return [
        measure.row(
            "mAP from codes", num_queries, "queries/s", timings, peer="NumPy, argsort a query",
            peer_work=len(few),
            note=f"{num_items:,} images x 6 codes; ties averaged exactly, sorting breaks them by "
            f"row: the scores differ by {gap.max():.1e} at most",
        )
    ]  # fmt: skip


def whole(quick: bool) -> list[measure.Row]:
    """Measures the computation of all measures in results.json at COCO's size."""
    num_queries, num_items = (200, 20_000) if quick else (5000, 117_218)
    query, database = inputs.retrieval(num_queries, num_items, 6)
    few = range(5 if quick else 20)
    timings = measure.interleaved(
        {
            "ours": lambda: evaluate.measure(query, database, KS),
            "NumPy, mAP alone": lambda: argsort_ap(query, database, few),
        },
        3,
    )
    result = measure.row(
        "whole evaluation, all measures", num_queries, "queries/s", timings,
        peer="NumPy, mAP alone", peer_work=len(few),
        memory_mb=measure.peak_memory(lambda: evaluate.measure(query, database, KS)),
    )  # fmt: skip
    seconds = timings["ours"].seconds
    result.note = (
        f"{num_queries:,} x {num_items:,} x 6 codes, 64 bits, F1 and buckets at {len(KS)} k: "
        f"{seconds:.2f} s"
    )
    if not quick and measure.num_threads() == 1:
        result.target, result.met = "< 5 s on one core", seconds < 5
    return [result]


def million(quick: bool) -> list[measure.Row]:
    """Measures the peak memory of computing all measures for a million items of six codes."""
    num_queries, num_items = (100, 50_000) if quick else (1000, 1_000_000)
    query, database = inputs.retrieval(num_queries, num_items, 6)
    held = measure.resident()
    start, cpu = time.perf_counter(), time.process_time()
    evaluate.measure(query, database, KS)
    timing = measure.Timing([time.perf_counter() - start], [time.process_time() - cpu])
    peak = measure.resident("VmHWM")
    result = measure.row(
        "a million images x 6 codes, all measures", num_queries, "queries/s", {"ours": timing},
        memory_mb=peak - held,
        note=f"{num_queries:,} x {num_items:,} x 6: {timing.seconds:.1f} s; the whole process "
        f"uses {peak / 1e3:.2f} GB at most, including inputs and libraries",
    )  # fmt: skip
    if not quick:
        result.target, result.met = "< 4 GB", peak < 4000
    return [result]


def histogram_seconds(num_queries, num_items, codes_per_image, num_bits) -> float:
    """Returns the seconds of one histogram, the best of three."""
    query, database = inputs.retrieval(num_queries, num_items, codes_per_image, num_bits)
    timing = measure.interleaved(
        {"": lambda: evaluate.histogram(query, database, measure.num_threads())}, 3
    )[""]
    return min(timing.wall)


def flat_seconds(num_queries, num_items, codes_per_image, num_bits) -> float | None:
    """Returns FAISS's seconds for the 100 nearest codes, extrapolated from 100 queries."""
    faiss = measure.faiss_or_none()
    if faiss is None:
        return None
    query, database = inputs.retrieval(min(num_queries, 100), num_items, codes_per_image, num_bits)
    flat = faiss.IndexBinaryFlat(num_bits)
    flat.add(database.codes)
    timing = measure.interleaved({"": lambda: flat.search(query.codes, 100)}, 3)[""]
    return min(timing.wall) * num_queries / len(query.codes)


def device_histogram(quick: bool) -> list[measure.Row]:
    """Measures the histogram in the form for accelerators, on JAX's default device."""
    num_queries, num_items = (16, 5_000) if quick else (256, 120_000)
    query, database = inputs.retrieval(num_queries, num_items, 6)
    ((_, packed),) = code_sets.by_num_codes(database)
    words = codes.from_bytes(query.codes, 64)
    query_labels, labels = (pairs.pack_labels(x.labels) for x in (query, database))
    import jax

    words, packed, query_labels, labels = jax.device_put(
        (words, packed, query_labels, np.ascontiguousarray(labels.T))
    )

    def ours():
        return histograms.label_histogram(words, packed, query_labels, labels, 64, on_device=True)

    timings = measure.interleaved({"ours": ours}, 3)
    return [
        measure.row(
            "evaluator on the device", num_queries * num_items * 6 / 1e9, "G distances/s", timings,
            note=f"{num_queries} x {num_items:,} x 6; row reduction, on {jax.default_backend()}",
        )
    ]  # fmt: skip
