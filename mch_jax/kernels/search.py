"""Kernel that finds the k nearest items of each query and counts as Algorithm 1 does."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from mch_jax.kernels.bits import num_visited
from mch_jax.kernels.jit import inlined, kernel, leaf
from mch_jax.kernels.rank import Ranking, group_by_distance, rank_items
from mch_jax.kernels.scan import (
    NUM_FOUND,
    NUM_ITEMS,
    REACH,
    BucketsFound,
    find_nearest_pivot,
    found_of,
    look_up_pairs,
    look_up_radius,
    new_buckets_found,
    new_pivot_orders,
    pays_to_look_up,
    reads_most,
    scan_nearest_pivot,
    scan_other_pivots,
    scan_rings,
    scan_together,
    with_twice_the_capacity,
)
from mch_jax.kernels.segment import NO_LIMIT, ZERO, Segments

STEPWISE_REACH = 7  # beyond this distance, reach no longer grows bit by bit
GROWTH = 3  # estimated growth of the number of items with each bit of distance
MOST_PAIRS = 64 * 63 // 2  # of bits of a code
QUERIES_TOGETHER, MAX_BUCKETS_TOGETHER = 64, 2**20  # of the queries that read the keys at once


class Question(NamedTuple):
    """What is asked of every query of a search.

    Attributes:
      k: Number of items.
      num_bits: Code length q.
      lookup_radius: Radius up to which codes are looked up before rings are read.
      code_filter: Bitmap by which codes at a radius of 2 are looked up as well, where that costs
        less than reading rings; empty if there is none (`kernels.filter`).
    """

    k: int
    num_bits: int
    lookup_radius: int
    code_filter: UInt64[np.ndarray, " words"]


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


class Waiting(NamedTuple):
    """Queries for which most keys have to be read, and which therefore read them together.

    Attributes:
      rows: Their rows; `counters[0]` of them count. Empty if no query may wait.
      reach: A distance for each within which there are enough buckets, or q.
      counters: The number of queries that wait.
    """

    rows: Int64[np.ndarray, " m"]
    reach: Int64[np.ndarray, " m"]
    counters: Int64[np.ndarray, "1"]


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
def _num_probed(keys, delta_keys, delta_row, query, row, num_bits, distance):
    """Returns the number of buckets visited up to that of a row; see `Answers.probed`."""
    if keys.ndim > 1:
        return np.uint64(row + 1)
    mask = query ^ (keys[row] if row < delta_row else delta_keys[row - delta_row])
    return num_visited(mask, distance, num_bits)


@leaf
def _answer_from(
    begin, segments, queries, order, question, answers, pivot_orders, flips, found, ranking,
    waiting,
):  # fmt: skip
    """Answers the queries in order[begin:] until `found` is too small for one.

    Args:
      begin: Position in `order` to begin at.
      segments: Base and delta.
      queries: Codes of all queries.
      order: Rows of `queries` to answer.
      question: What to search for.
      answers: Filled in the rows of the queries answered.
      pivot_orders: Buffers; changed.
      flips: A buffer for the flip masks of `look_up_pairs`; changed.
      found: Buffers; changed.
      ranking: Buffers, as large as `found`; changed.
      waiting: Takes queries that are not answered because most keys would have to be read.

    Returns:
      The position of the query that needs a larger `found`, or the end of `order`.
    """
    k, num_bits, lookup_radius, code_filter = question
    base, delta = segments.base, segments.delta
    base_pivots, delta_pivots = pivot_orders
    counters, delta_row, nearest = found.counters, base.offsets.size - 1, NO_LIMIT
    has_delta, may_wait = delta.items.size > 0, waiting.rows.size > 0
    for position in range(begin, order.size):
        m = order[position]
        query, count, last, radius = queries[m], ZERO, ZERO, np.int64(-1)
        enough, waits, knows_pivots, most_looked_up = k + k // 2, False, False, lookup_radius
        counters[:], answers.nonempty[m] = 0, 0
        while count < k:
            if radius < most_looked_up:
                radius += 1
                counters[REACH] = radius
                if radius == 2 and lookup_radius < 2:
                    if not look_up_pairs(base, code_filter, query, num_bits, flips, found):
                        return position
                elif not look_up_radius(base, ZERO, query, num_bits, radius, found):
                    return position
                if has_delta and not look_up_radius(
                    delta, delta_row, query, num_bits, radius, found
                ):
                    return position
                if counters[NUM_ITEMS] < k and radius < num_bits:  # the k-th item is farther
                    count = counters[NUM_ITEMS]
                    continue
            else:
                if not knows_pivots:
                    find_nearest_pivot(base.pivots, query, base_pivots.order)
                    find_nearest_pivot(delta.pivots, query, delta_pivots.order)
                    nearest = base_pivots.order[0] >> 32 if base_pivots.order.size else ZERO
                    knows_pivots = True
                if radius == most_looked_up and pays_to_look_up(
                    base, code_filter, has_delta, num_bits, base_pivots, radius + 1
                ):
                    most_looked_up = radius + 1
                    continue
                if counters[REACH] < radius:  # it fell for buckets that share items: ask for more
                    enough *= 2
                elif radius == num_bits:
                    break
                else:
                    radius = _next_radius(radius, count, nearest, k, num_bits)
                counters[:], found.per_distance[:] = 0, 0
                counters[REACH] = radius
                # Reach falls near the nearest pivot, unless that is the only one.
                waits = may_wait and base_pivots.order.size == 1
                waits = waits and reads_most(base, num_bits, base_pivots, radius)
                if not waits:
                    if not scan_nearest_pivot(
                        base, ZERO, query, num_bits, enough, base_pivots, found
                    ):
                        return position
                    waits = may_wait and reads_most(base, num_bits, base_pivots, counters[REACH])
                if waits:
                    waiting.rows[waiting.counters[0]] = m
                    waiting.reach[waiting.counters[0]] = counters[REACH]
                    waiting.counters[0] += 1
                    break
                if not scan_other_pivots(base, ZERO, query, num_bits, enough, base_pivots, found):
                    return position
                if has_delta and not scan_rings(
                    delta, delta_row, query, num_bits, enough, delta_pivots, found
                ):
                    return position
            if counters[NUM_FOUND]:
                count, last = _rank(segments, m, query, question, answers, found, ranking)
        if not waits:
            _finish(segments, m, query, question, answers, count, last)
    return order.size


@inlined
def _rank(segments, m, query, question, answers, found, ranking):
    """Fills the items of a query from the buckets found.

    Returns:
      The number of items, and the row of the bucket that held the k-th.
    """
    group_by_distance(segments, found, ranking.rows, ranking.starts)
    count, last, answers.nonempty[m] = rank_items(
        segments, query, question.k, found.counters[REACH], ranking,
        answers.item[m], answers.distance[m],
    )  # fmt: skip
    return count, last


@inlined
def _finish(segments, m, query, question, answers, count, last):
    """Fills what is missing of the answer to a query: the places of items that do not exist."""
    base, delta = segments.base, segments.delta
    k, num_bits = question.k, question.num_bits
    answers.item[m, count:] = -1
    answers.distance[m, count:] = -1
    answers.probed[m] = 0
    if count == k:
        answers.probed[m] = _num_probed(
            base.keys, delta.keys, base.offsets.size - 1, query, last, num_bits,
            answers.distance[m, k - 1],
        )  # fmt: skip


@leaf
def _answer_together(
    segments, queries, rows, reach, enough, question, answers, pivot_orders, together, ranking
):
    """Answers several queries by reading all keys of the base once.

    Args:
      segments: Base and delta.
      queries: Codes of all queries.
      rows: Rows of the queries to answer; changed.
      reach: Reach of each of these queries to begin with.
      enough: Number of buckets after which reach falls.
      question: What to search for.
      answers: Filled in the rows of the queries answered.
      pivot_orders: Buffers; changed.
      together: Buffers for `scan_together`; changed.
      ranking: Buffers for one query; changed.

    Returns:
      The number of queries that need more buckets, because those found hold fewer than k items, and
      whose rows now come first in `rows`; -1 if the buffers were too small.
    """
    base, delta, delta_pivots = segments.base, segments.delta, pivot_orders[1]
    num_bits, delta_row, num_left = question.num_bits, base.offsets.size - 1, 0
    together.counters[:], together.per_distance[:] = 0, 0
    for i in range(rows.size):
        together.counters[i, REACH] = reach[i]
    if not scan_together(base, queries, rows, enough, together):
        return -1
    for i in range(rows.size):
        m, found, count, last = rows[i], found_of(together, i), ZERO, ZERO
        query = queries[m]
        find_nearest_pivot(delta.pivots, query, delta_pivots.order)
        if not scan_rings(delta, delta_row, query, num_bits, enough, delta_pivots, found):
            return -1
        if found.counters[NUM_FOUND]:
            count, last = _rank(segments, m, query, question, answers, found, ranking)
        if count < question.k and found.counters[REACH] < num_bits:
            rows[num_left] = m
            num_left += 1
        else:
            _finish(segments, m, query, question, answers, count, last)
    return num_left


@kernel
def _with_capacity(ranking, size):
    """Returns `Ranking` with room for as many buckets."""
    rows, masks = np.empty((2, size), np.int64)
    return Ranking(rows, ranking.starts, masks.view(np.uint64), ranking.seen, ranking.ties)


@kernel
def _answer_waiting(segments, queries, question, answers, pivot_orders, ranking, waiting):
    """Answers the queries that wait, in groups."""
    enough, size, num_bits = question.k + question.k // 2, ranking.rows.size, question.num_bits
    num_waiting = waiting.counters[0]
    while num_waiting:
        start, num_left = 0, 0
        while start < num_waiting:
            most = max(1, min(QUERIES_TOGETHER, MAX_BUCKETS_TOGETHER // size))
            rows = waiting.rows[start : min(start + most, num_waiting)].copy()
            buckets = np.empty((rows.size, size), np.int64)
            counters = np.empty((rows.size, 4), np.int64)
            per_distance = np.empty((rows.size, num_bits + 1), np.int64)
            left = _answer_together(
                segments, queries, rows, waiting.reach[start:], enough, question, answers,
                pivot_orders, BucketsFound(buckets, counters, per_distance), ranking,
            )  # fmt: skip
            if left < 0:
                size *= 2
                ranking = _with_capacity(ranking, size)
                continue
            waiting.rows[num_left : num_left + left] = rows[:left]
            start, num_left = start + rows.size, num_left + left
        num_waiting, enough = num_left, 2 * enough
        waiting.reach[:num_left] = num_bits


@kernel
def nearest_items(
    base, delta, queries, order, num_bits, lookup_radius, code_filter, together,
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
      num_bits: See `Question`, like `lookup_radius` and `code_filter`.
      lookup_radius: Radius up to which codes are looked up.
      code_filter: Filter of the base's codes, or an empty array.
      together: Whether queries for which most keys have to be read wait for each other, so that the
        keys are read once for all of them.
      item: See `Answers`, like the next three arguments; filled in the rows of these queries. Its
        columns are the k items to find.
      distance: Distances of the items.
      probed: Buckets visited.
      nonempty: Non-empty buckets visited.
    """
    segments, k = Segments(base, delta), item.shape[1]
    question = Question(k, num_bits, lookup_radius, code_filter)
    answers = Answers(item, distance, probed, nonempty)
    limit = min(k, base.items.size + delta.items.size)
    num_slots = 64
    while num_slots < 4 * limit:
        num_slots *= 2
    seen, ties = np.empty(num_slots, np.int64), np.empty(2 * limit + 16, np.int64)
    starts = np.zeros(num_bits + 3, np.int64)
    pivot_orders = new_pivot_orders(segments, num_bits)
    found = new_buckets_found(1024, num_bits)
    none = np.empty(0, np.int64)
    ranking = Ranking(none, starts, none.view(np.uint64), seen, ties)
    ranking = _with_capacity(ranking, found.buckets.size)
    flips = np.empty(MOST_PAIRS + 1 if code_filter.size else 0, np.uint64)
    most, position = order.size if together else 0, 0
    waiting = Waiting(np.empty(most, np.int64), np.empty(most, np.int64), np.zeros(1, np.int64))
    while True:
        position = _answer_from(
            position, segments, queries, order, question, answers, pivot_orders, flips, found,
            ranking, waiting,
        )  # fmt: skip
        if position == order.size:
            break
        found = with_twice_the_capacity(found)
        ranking = _with_capacity(ranking, found.buckets.size)
    _answer_waiting(segments, queries, question, answers, pivot_orders, ranking, waiting)
