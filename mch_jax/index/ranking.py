"""Ranking by asymmetric distance: all items of an index, or those nearest by Hamming distance."""

import numpy as np
from jaxtyping import Float32, Int64, UInt32, UInt64

from mch_jax.index import segment
from mch_jax.index.answers import CheapestItems
from mch_jax.kernels.asymmetric import nearest_by_cost
from mch_jax.kernels.rerank import cheapest_of
from mch_jax.kernels.segment import Segments
from mch_jax.kernels.threads import in_threads

Pairs = tuple[UInt64[np.ndarray, " c"], UInt32[np.ndarray, " c"]]


def query_threads(
    run, num_queries: int, threads: int | None, min_slice: int = segment.QUERIES_PER_TASK
) -> list:
    """Returns the results of `run` for slices of the queries, each in a thread."""
    return in_threads(run, num_queries, threads, slices_per_thread=4, min_slice=min_slice)


def cheapest(
    segments: Segments,
    queries: UInt64[np.ndarray, "m t"],
    margins: Float32[np.ndarray, "m t q"],
    k: int,
    threads: int | None,
) -> CheapestItems:
    """Returns the k items of least asymmetric distance, exactly."""
    item = np.empty((len(queries), k), np.int64)
    distance = np.empty((len(queries), k), np.float32)

    def run(rows: slice) -> None:
        nearest_by_cost(
            *segments, queries[rows], margins[rows], margins.shape[2], item[rows], distance[rows]
        )

    query_threads(run, len(queries), threads)
    return CheapestItems(item, distance)


def pairs_by_item(segments: Segments) -> Pairs:
    """Returns the code and the item of every pair that was not removed, by item."""
    parts = segment.live_pairs(segments.base), segment.all_pairs(segments.delta)
    words, items = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.argsort(items, kind="stable")
    return words[order], items[order]


def reranked(
    pairs: Pairs,
    near: Int64[np.ndarray, "m r"],
    queries: UInt64[np.ndarray, "m t"],
    margins: Float32[np.ndarray, "m t q"],
    k: int,
    threads: int | None,
) -> CheapestItems:
    """Returns the k items of least asymmetric distance among some items of each query.

    Args:
      pairs: What `pairs_by_item` returns.
      near: The items to rank; -1 where there are fewer.
      queries: Codes of the queries.
      margins: Margins of the codes.
      k: Number of items, at most r.
      threads: Maximum number of threads. Defaults to one per core.
    """
    item = np.empty((len(queries), k), np.int64)
    distance = np.empty((len(queries), k), np.float32)

    def run(rows: slice) -> None:
        cheapest_of(*pairs, near[rows], queries[rows], margins[rows], item[rows], distance[rows])

    query_threads(run, len(queries), threads)
    return CheapestItems(item, distance, near.shape[1])
