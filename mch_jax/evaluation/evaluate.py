"""How well the codes of a database retrieve; the rules are those of `mch_jax.metrics`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from mch_jax import codes, histograms, metrics, pairs
from mch_jax.evaluation import asymmetric, equal_cost
from mch_jax.files import code_sets
from mch_jax.files.codes_file import CodeFile
from mch_jax.index import visit_counts
from mch_jax.metrics import Histogram


def histogram(query: CodeFile, database: CodeFile, threads: int | None = None) -> Histogram:
    """Returns the number of database items at each distance from each query, by relevance.

    Args:
      query: Codes of the queries. A query with several codes is at the distance of its nearest one.
      database: Codes of the database. An item counts at its nearest code, and is relevant to a
        query that shares a label with it.
      threads: Maximum number of threads. Defaults to one per core.
    """
    if len(query.codes) > len(query.ids):
        return _histogram_of_several(query, database)
    queries = codes.from_bytes(query.codes, query.num_bits)
    query_labels, labels = (pairs.pack_labels(file.labels) for file in (query, database))
    counts = np.zeros((len(queries), query.num_bits + 1, 2), np.int64)
    for items, packed in code_sets.by_num_codes(database):
        counts += histograms.label_histogram(
            queries, packed, query_labels, np.ascontiguousarray(labels[items].T),
            query.num_bits, threads=threads,
        )  # fmt: skip
    return counts


def _histogram_of_several(query: CodeFile, database: CodeFile) -> Histogram:
    """Returns the histogram of queries with several codes each, at most 65,535 bits long."""
    queries, words = (codes.from_bytes(x.codes, x.num_bits) for x in (query, database))
    query_labels, labels = (pairs.pack_labels(file.labels) for file in (query, database))
    starts = np.searchsorted(database.item, np.arange(len(database.ids)))
    ends = np.searchsorted(query.item, np.arange(len(query.ids) + 1))
    counts = np.zeros((len(query.ids), query.num_bits + 1, 2), np.int64)
    for m in range(len(query.ids)):
        nearest = np.full(len(words), query.num_bits, np.uint16)
        for code in queries[ends[m] : ends[m + 1]]:
            distance = np.bitwise_count(words ^ code[None]).sum(1, dtype=np.uint16)
            np.minimum(nearest, distance, out=nearest)
        relevant = (labels & query_labels[m][None]).any(1)
        bins = np.minimum.reduceat(nearest, starts) * 2 + relevant
        counts[m] = np.bincount(bins, minlength=2 * (query.num_bits + 1)).reshape(-1, 2)
    return counts


def f1_bucket(
    query: CodeFile,
    database: CodeFile,
    counts: Histogram,
    ks: Sequence[int],
    threads: int | None = None,
) -> dict[str, list[int | float]]:
    """Returns the mean F1 of the k nearest items and the buckets that Algorithm 1 visits for them.

    The buckets follow from combinatorics, for every k in one pass over the codes; none of them is
    enumerated.

    Args:
      query: Codes of the queries.
      database: Codes of the database.
      counts: Their `histogram`.
      ks: Numbers of nearest items, none larger than the database.
      threads: Maximum number of threads. Defaults to one per core.
    """
    counted = metrics.has_relevant(counts)
    probed, nonempty = visit_counts(
        query.codes[counted], database.codes, database.item, database.num_bits,
        counts[counted].sum(2), ks, threads,
    )  # fmt: skip
    queries = max(int(counted.sum()), 1)
    return {
        "k": list(ks),
        "f1": [metrics.f1_at(counts, k) for k in ks],
        "probed": (probed.sum(0) / queries).tolist(),
        "nonempty": (nonempty.sum(0) / queries).tolist(),
    }


def measure(
    query: CodeFile,
    database: CodeFile,
    ks: Sequence[int],
    counts: Histogram | None = None,
    logits: Float[np.ndarray, "m q"] | None = None,
) -> dict[str, Any]:
    """Returns every measure of one choice of the database's codes.

    Args:
      query: Codes of the queries, one each.
      database: Codes of the database.
      ks: Numbers of nearest items to take F1 of.
      counts: Their `histogram`, where it is known already.
      logits: Logits of the queries. Without them, the measures that need them are left out.
    """
    counts = histogram(query, database) if counts is None else counts
    by_logits = {}
    if logits is not None:
        by_logits["map_asymmetric"] = asymmetric.mean_average_precision(
            logits[:, None], query, database
        )
    ball, larger_ball = (metrics.within_radius(counts, radius) for radius in (0, 2))
    return {
        "map": metrics.mean_average_precision(counts),
        **by_logits,
        "map_at_5000": metrics.mean_average_precision(counts, 5000),
        "p_at_h0": ball.precision,
        "r_at_h0": ball.recall,
        "nonempty_at_h0": ball.nonempty,
        "p_at_h2": larger_ball.precision,
        "r_at_h2": larger_ball.recall,
        "anhc": metrics.average_number_of_codes(database.item, len(database.ids)),
        "bytes_per_image": equal_cost.bytes_per_image(
            len(database.item), len(database.ids), database.num_bits
        ),
        "f1_bucket": f1_bucket(query, database, counts, ks),
        "probe": equal_cost.measures(query, database, logits, counts[:, :, 1].sum(1)),
    }


def difference(counts: Histogram, base: Histogram) -> dict[str, dict[str, float]]:
    """Returns how much higher codes score than the base's, paired by query.

    Args:
      counts: Histogram of the codes.
      base: Histogram of the base's codes for the same queries.

    Returns:
      For mAP, P@H=0 and R@H=0 the mean difference over the queries that have a relevant item, and
      half the width of its 95 % interval over such queries, 1.96 standard errors.
    """
    counted = metrics.has_relevant(base)
    each = metrics.scores(counts[counted]) - metrics.scores(base[counted])
    number = max(len(each), 1)
    mean = each.sum(0) / number
    half = 1.96 * np.sqrt(((each - mean[None]) ** 2).sum(0)) / number
    return {
        name: {"mean": float(one), "interval": float(width)}
        for name, one, width in zip(("map", "p_at_h0", "r_at_h0"), mean, half, strict=True)
    }


def measure_several(
    query: CodeFile, database: CodeFile, logits: Float[np.ndarray, "m t q"]
) -> dict[str, Any]:
    """Returns the measures of queries with several codes each.

    Args:
      query: Codes of the queries, equal ones of a query once.
      database: Codes of the database.
      logits: Logits of as many codes for each query, whose signs are its codes in `query`; a query
        with fewer codes repeats one.
    """
    counts = histogram(query, database)
    ball = metrics.within_radius(counts, 0)
    return {
        "map": metrics.mean_average_precision(counts),
        "map_asymmetric": asymmetric.mean_average_precision(logits, query, database),
        "p_at_h0": ball.precision,
        "r_at_h0": ball.recall,
        "codes_per_query": len(query.item) / max(len(query.ids), 1),
        "probe": equal_cost.measures(query, database, logits, counts[:, :, 1].sum(1)),
    }
