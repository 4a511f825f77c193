"""Kernel that finds the k nearest items of each query and counts as Algorithm 1 does."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from mch_jax.kernels.bits import mask_rank
from mch_jax.kernels.jit import kernel, leaf
from mch_jax.kernels.rank import Ranking, group_by_distance, rank_items
from mch_jax.kernels.scan import (
    NUM_FOUND,
    NUM_ITEMS,
    REACH,
    find_nearest_pivot,
    look_up_radius,
    new_buckets_found,
    new_pivot_orders,
    scan_rings,
    with_twice_the_capacity,
)
from mch_jax.kernels.segment import NO_LIMIT, ZERO, Segments

STEPWISE_REACH = 7  # beyond this distance, reach no longer grows bit by bit
GROWTH = 3  # estimated growth of the number of items with each bit of distance


class Question(NamedTuple):
    """What is asked of every query of a search.

    Attributes:
      k: Number of items.
      num_bits: Code length q.
      lookup_radius: Radius up to which codes are looked up before rings are read.
      binomials: C(n, i) for n and i up to q.
    """

    k: int
    num_bits: int
    lookup_radius: int
    binomials: UInt64[np.ndarray, "n n"]


class Answers(NamedTuple):
    """Arrays that a search fills, with a row per query.

    Attributes:
      item: The k nearest items, nearest first; -1 where fewer exist.
      distance: Their distances; -1 likewise.
      probed: Buckets that Algorithm 1 visits; 0 for all 2^q, where fewer than k items exist. For
        codes of several words, 1 + the row of the bucket with the k-th item instead.
      nonempty: Number of these that hold an item.
    """

    item: Int64[np.ndarray, "m k"]
    distance: Int32[np.ndarray, "m k"]
    probed: UInt64[np.ndarray, " m"]
    nonempty: Int64[np.ndarray, " m"]


@leaf
def _next_radius(radius, count, nearest, k, num_bits):
    """Returns how far to search after `count` < k items were found within `radius`.

    A query that is far even from its nearest pivot and has nothing near is far from everything.
    """
    if (
        radius < 0
        or radius >= STEPWISE_REACH
        or (count == 0 and (radius > 1 or nearest > num_bits // 6))
    ):
        return num_bits
    radius, expected = radius + 1, GROWTH * max(1, count)
    while expected < k:
        radius, expected = radius + 1, GROWTH * expected
    return min(radius, num_bits)


@leaf
def _num_probed(keys, delta_keys, delta_row, query, row, num_bits, distance, binomials):
    """Returns the number of buckets visited up to that of a row; see `Answers.probed`."""
    if keys.ndim > 1:
        return np.uint64(row + 1)
    mask = query ^ (keys[row] if row < delta_row else delta_keys[row - delta_row])
    probed = mask_rank(mask, binomials) + np.uint64(1)
    for nearer in range(distance):
        probed += binomials[num_bits, nearer]
    return probed


@leaf
def _answer_from(begin, segments, queries, order, question, answers, pivot_orders, found, ranking):
    """Answers the queries in order[begin:] until `found` is too small for one.

    Args:
      begin: Position in `order` to begin at.
      segments: Base and delta.
      queries: Codes of all queries.
      order: Rows of `queries` to answer.
      question: What to search for.
      answers: Filled in the rows of the queries answered.
      pivot_orders: Buffers; changed.
      found: Buffers; changed.
      ranking: Buffers, as large as `found`; changed.

    Returns:
      The position of the query that needs a larger `found`, or the end of `order`.
    """
    k, num_bits, lookup_radius, binomials = question
    base, delta = segments.base, segments.delta
    base_pivots, delta_pivots = pivot_orders
    counters, delta_row, nearest = found.counters, base.offsets.size - 1, NO_LIMIT
    has_delta = delta.items.size > 0
    for position in range(begin, order.size):
        m = order[position]
        query, count, last, radius = queries[m], ZERO, ZERO, np.int64(-1)
        item, distance = answers.item[m], answers.distance[m]
        enough, answers.nonempty[m] = k + k // 2, 0
        counters[:] = 0
        while count < k:
            if radius < lookup_radius:
                radius += 1
                counters[REACH] = radius
                if not look_up_radius(base, ZERO, query, num_bits, radius, found):
                    return position
                if has_delta and not look_up_radius(
                    delta, delta_row, query, num_bits, radius, found
                ):
                    return position
                if counters[NUM_ITEMS] < k and radius < num_bits:  # the k-th item is farther
                    count = counters[NUM_ITEMS]
                    continue
            else:
                if radius == lookup_radius:
                    find_nearest_pivot(base.pivots, query, base_pivots.order)
                    find_nearest_pivot(delta.pivots, query, delta_pivots.order)
                    nearest = base_pivots.order[0] >> 32 if base_pivots.order.size else ZERO
                if counters[REACH] < radius:  # it fell for buckets that share items: ask for more
                    enough *= 2
                elif radius == num_bits:
                    break
                else:
                    radius = _next_radius(radius, count, nearest, k, num_bits)
                counters[:], found.per_distance[:] = 0, 0
                counters[REACH] = radius
                if not scan_rings(base, ZERO, query, num_bits, enough, base_pivots, found):
                    return position
                if has_delta and not scan_rings(
                    delta, delta_row, query, num_bits, enough, delta_pivots, found
                ):
                    return position
            if counters[NUM_FOUND]:
                group_by_distance(segments, found, ranking)
                count, last, answers.nonempty[m] = rank_items(
                    segments, query, k, counters[REACH], ranking, item, distance
                )
        item[count:] = -1
        distance[count:] = -1
        answers.probed[m] = 0
        if count == k:
            answers.probed[m] = _num_probed(
                base.keys, delta.keys, delta_row, query, last, num_bits, distance[k - 1], binomials
            )
    return order.size


@kernel
def nearest_items(
    base, delta, queries, order, k, num_bits, lookup_radius, binomials,
    item, distance, probed, nonempty,
):  # fmt: skip
    """Fills the answers of the queries in `order`.

    The arguments are not grouped, because numba takes apart tuples that come from Python: that cost
    2 us per call, a tenth of the time of a call with one query.

    Args:
      base: The large segment.
      delta: The small segment.
      queries: uint64 [m], codes of all queries.
      order: int64, rows of `queries` to answer.
      k: See `Question`, like the next three arguments.
      num_bits: Code length q.
      lookup_radius: Radius up to which codes are looked up.
      binomials: C(n, i).
      item: See `Answers`, like the next three arguments; filled in the rows of these queries.
      distance: Distances of the items.
      probed: Buckets visited.
      nonempty: Non-empty buckets visited.
    """
    segments = Segments(base, delta)
    question = Question(k, num_bits, lookup_radius, binomials)
    answers = Answers(item, distance, probed, nonempty)
    limit = min(k, base.items.size + delta.items.size)
    num_slots = 64
    while num_slots < 4 * limit:
        num_slots *= 2
    seen, ties = np.empty(num_slots, np.int64), np.empty(2 * limit + 16, np.int64)
    starts = np.zeros(num_bits + 3, np.int64)
    pivot_orders = new_pivot_orders(segments, num_bits)
    found = new_buckets_found(1024, num_bits)
    position = 0
    while position < order.size:
        rows, masks = np.empty((2, found.buckets.size), np.int64)
        ranking = Ranking(rows, starts, masks.view(np.uint64), seen, ties)
        position = _answer_from(
            position, segments, queries, order, question, answers, pivot_orders, found, ranking
        )
        if position < order.size:
            found = with_twice_the_capacity(found)
