"""Probing by quantization distance, in threads, with answers in arrays that grow."""

import numpy as np
from jaxtyping import Float32, UInt64

from mch_jax.index.answers import ProbedItems, joined
from mch_jax.index.ranking import query_threads
from mch_jax.kernels import probe, probe_long
from mch_jax.kernels.probe import Answers
from mch_jax.kernels.segment import Segments

FIRST_ITEMS = 4096  # capacity for the first queries, whose answers tell the capacity for all
SPARE = 1.25  # capacity in relation to what the answered queries took
WORDS_PER_QUERY = 4096  # a bitmap of all items is used if making it costs less than hashing
MAX_QUERIES = 64  # more queries do not make a larger bitmap worthwhile: 2 MiB, 16 million items


def probed_items(
    segments: Segments,
    queries: UInt64[np.ndarray, "m t *w"],
    margins: Float32[np.ndarray, "m t q"],
    budget: int,
    limit: int,
    num_words: int,
    threads: int | None,
) -> ProbedItems:
    """Returns the items of the buckets of least quantization distance.

    Args:
      segments: Base and delta of an index.
      queries: Codes of the queries.
      margins: Margins of the codes.
      budget: Number of buckets to look at.
      limit: Number of items at which to stop earlier.
      num_words: Size of a bitmap of all items, in words.
      threads: Maximum number of threads. Defaults to one per core.
    """
    kernel = probe.probed_items if queries.ndim == 2 else probe_long.probed_items

    def run(rows: slice) -> tuple:
        own, own_margins = queries[rows], margins[rows]
        count, num_bits = len(own), margins.shape[2]
        most = WORDS_PER_QUERY * min(count, MAX_QUERIES)
        words = np.zeros(num_words if num_words <= most else 0, np.uint64)
        answers = Answers(
            np.zeros(count + 1, np.int64),
            np.empty(FIRST_ITEMS, np.int64),
            np.empty(FIRST_ITEMS, np.float32),
            np.zeros((3, count), np.int64),
        )
        done, more = kernel(*segments, own, own_margins, num_bits, budget, limit, words, 0, answers)
        while done < count:
            used = int(answers.bounds[done])
            size = int(SPARE * (used + more) * count / (done + 1)) + more
            item, cost = np.empty(size, np.int64), np.empty(size, np.float32)
            item[:used], cost[:used] = answers.item[:used], answers.cost[:used]
            answers = answers._replace(item=item, cost=cost)
            done, more = kernel(
                *segments, own, own_margins, num_bits, budget, limit, words, done, answers
            )
        used = int(answers.bounds[count])
        return answers.bounds, answers.item[:used], answers.cost[:used], *answers.counts

    return ProbedItems(*joined(query_threads(run, len(queries), threads), threads))
