"""Kernel that looks at buckets of codes of several words by ascending quantization distance.

The flip masks come from a heap (generate-to-probe, Li et al., SIGMOD 2018). With the bits sorted by
their steps, every mask has two children: one with the bit after its last one too, and one with that
bit instead of its last one. Neither is before its parent in the order of costs and masks, so that
the least mask of the heap is the next one.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64

from mch_jax.kernels.arrays import sort
from mch_jax.kernels.bits import mix
from mch_jax.kernels.jit import kernel, leaf
from mch_jax.kernels.masks import fill_steps
from mch_jax.kernels.probe import (
    BLOCK,
    Block,
    Met,
    clear_bits,
    has_answered,
    look_up,
    take_block,
    with_room,
)
from mch_jax.kernels.segment import ZERO, BucketItems

NUM_HEAP, NUM_NODES, NUM_LISTED = range(3)  # of Frontier.counters
_POSITION_BITS = 10  # of a bit of a code of up to 1,024 bits


class Frontier(NamedTuple):
    """The flip masks of one query that may come next. Kernels change the arrays in place.

    Attributes:
      heap: Nodes; those of least cost, mask and query code first.
      costs: Cost of each node.
      masks: Flip mask of each node, w words.
      last: Position, in the order of the steps, of the last bit of the mask; -1 if it has none.
      owner: Which of the query's codes the mask belongs to.
      listed: Codes of the buckets listed, where a query has several codes, w words each.
      slots: Hash table of these, as 1 + the number of the bucket.
      counters: NUM_HEAP, NUM_NODES, NUM_LISTED.
    """

    heap: Int64[np.ndarray, " nodes"]
    costs: Int64[np.ndarray, " nodes"]
    masks: UInt64[np.ndarray, " nodes*w"]
    last: Int64[np.ndarray, " nodes"]
    owner: Int64[np.ndarray, " nodes"]
    listed: UInt64[np.ndarray, " buckets*w"]
    slots: Int64[np.ndarray, " slots"]
    counters: Int64[np.ndarray, "3"]


@leaf
def _precedes(frontier, num_words, one, other):
    """Returns whether a node comes before another: by cost, flip mask, and query code."""
    costs, masks = frontier.costs, frontier.masks
    if costs[one] != costs[other]:
        return costs[one] < costs[other]
    for j in range(num_words - 1, -1, -1):
        if masks[one * num_words + j] != masks[other * num_words + j]:
            return masks[one * num_words + j] < masks[other * num_words + j]
    return frontier.owner[one] < frontier.owner[other]


@leaf
def _sift_down(frontier, num_words):
    """Restores the heap below its first node."""
    heap, size, parent = frontier.heap, frontier.counters[NUM_HEAP], 0
    while 2 * parent + 1 < size:
        child = 2 * parent + 1
        if child + 1 < size and _precedes(frontier, num_words, heap[child + 1], heap[child]):
            child += 1
        if not _precedes(frontier, num_words, heap[child], heap[parent]):
            return
        heap[parent], heap[child] = heap[child], heap[parent]
        parent = child


@leaf
def _push(frontier, num_words, node):
    """Adds a node to the heap."""
    heap, child = frontier.heap, frontier.counters[NUM_HEAP]
    frontier.counters[NUM_HEAP] += 1
    heap[child] = node
    while child > 0:
        parent = (child - 1) >> 1
        if not _precedes(frontier, num_words, heap[child], heap[parent]):
            return
        heap[parent], heap[child] = heap[child], heap[parent]
        child = parent


@leaf
def _flip(frontier, num_words, node, steps, order, sign):
    """Adds or removes the last bit of a node's mask, and its cost."""
    bit = order[frontier.last[node]] & ((1 << _POSITION_BITS) - 1)
    frontier.masks[node * num_words + (bit >> 6)] ^= np.uint64(1) << np.uint64(bit & 63)
    frontier.costs[node] += sign * steps[bit]


@leaf
def _advance(frontier, num_words, steps, orders):
    """Replaces the first node of the heap by its children."""
    node, last, owner = frontier.heap[0], frontier.last, frontier.owner
    t = owner[node]
    if last[node] + 1 == steps.shape[1]:  # the mask has the last of all bits
        frontier.counters[NUM_HEAP] -= 1
        frontier.heap[0] = frontier.heap[frontier.counters[NUM_HEAP]]
        _sift_down(frontier, num_words)
        return
    child = node
    if last[node] >= 0:  # a copy has the next bit too, and the node has it instead of its last one
        child = frontier.counters[NUM_NODES]
        frontier.counters[NUM_NODES] += 1
        for j in range(num_words):
            frontier.masks[child * num_words + j] = frontier.masks[node * num_words + j]
        frontier.costs[child], owner[child] = frontier.costs[node], t
        _flip(frontier, num_words, node, steps[t], orders[t], -1)
        last[child] = last[node]
        last[child] += 1
        _flip(frontier, num_words, child, steps[t], orders[t], 1)
    last[node] += 1
    _flip(frontier, num_words, node, steps[t], orders[t], 1)
    _sift_down(frontier, num_words)
    if child != node:
        _push(frontier, num_words, child)


@leaf
def _slot_of(frontier, code):
    """Returns the slot that holds a code, or the empty one where it would be."""
    slots, listed, num_words = frontier.slots, frontier.listed, code.size
    hashed = np.uint64(0)
    for word in code:
        hashed = mix(hashed ^ word)
    slot = np.int64(hashed & np.uint64(slots.size - 1))
    while slots[slot] > 0:
        first, equal = (slots[slot] - 1) * num_words, True
        for j in range(num_words):
            equal = equal and listed[first + j] == code[j]
        if equal:
            return slot
        slot = (slot + 1) & (slots.size - 1)
    return slot


@leaf
def _is_listed(frontier, code):
    """Returns whether a bucket was listed already; afterwards it is."""
    slot, counters = _slot_of(frontier, code), frontier.counters
    if frontier.slots[slot] > 0:
        return True
    for j in range(code.size):
        frontier.listed[counters[NUM_LISTED] * code.size + j] = code[j]
    counters[NUM_LISTED] += 1
    frontier.slots[slot] = counters[NUM_LISTED]
    return False


@leaf
def _start(frontier, codes, steps, orders):
    """Makes a heap of the empty masks of all codes, and sorts the bits of each by their steps."""
    num_codes, num_words = codes.shape
    frontier.counters[:] = 0
    frontier.slots[:] = 0
    for t in range(num_codes):
        for bit in range(steps.shape[1]):
            orders[t, bit] = (steps[t, bit] << _POSITION_BITS) | bit
        sort(orders[t])
        frontier.costs[t], frontier.last[t], frontier.owner[t] = 0, -1, t
        for j in range(num_words):
            frontier.masks[t * num_words + j] = 0
        frontier.counters[NUM_NODES] += 1
        _push(frontier, num_words, t)


@leaf
def _list_block(frontier, codes, steps, orders, count, block, owners):
    """Fills a block with the next `count` buckets, or as many as there is room for.

    `owners` is filled with the query code of each, if it is not empty.

    Returns:
      The number of buckets.
    """
    num_codes, num_words = codes.shape
    counters, heap, i = frontier.counters, frontier.heap, 0
    while i < count and max(counters[NUM_NODES], counters[NUM_LISTED]) < heap.size:
        node = heap[0]
        code = block.codes[i]
        for j in range(num_words):
            code[j] = codes[frontier.owner[node], j] ^ frontier.masks[node * num_words + j]
        block.costs[i] = frontier.costs[node]
        if owners.size:
            owners[i] = frontier.owner[node]
        _advance(frontier, num_words, steps, orders)
        if num_codes == 1 or not _is_listed(frontier, code):
            i += 1
    return i


@kernel
def _new_frontier(num_codes, num_words, size):
    """Returns a `Frontier` for `size` nodes and, of several codes, as many buckets."""
    num_slots, num_listed = 1, size if num_codes > 1 else 0
    while num_slots < 2 * num_listed:
        num_slots *= 2
    return Frontier(
        np.empty(size, np.int64), np.empty(size, np.int64), np.empty(size * num_words, np.uint64),
        np.empty(size, np.int64), np.empty(size, np.int64),
        np.empty(num_listed * num_words, np.uint64), np.zeros(num_slots, np.int64),
        np.zeros(3, np.int64),
    )  # fmt: skip


@kernel
def _with_twice_the_capacity(frontier, num_words):
    """Returns a copy of a frontier with room for twice as many nodes."""
    size = frontier.heap.size
    num_codes = 2 if frontier.listed.size else 1
    larger = _new_frontier(num_codes, num_words, 2 * size)
    larger.heap[:size], larger.costs[:size] = frontier.heap, frontier.costs
    larger.masks[: size * num_words] = frontier.masks
    larger.last[:size], larger.owner[:size] = frontier.last, frontier.owner
    larger.counters[:] = frontier.counters
    if num_codes > 1:
        larger.listed[: size * num_words] = frontier.listed
        for i in range(frontier.counters[NUM_LISTED]):
            code = larger.listed[i * num_words : (i + 1) * num_words]
            larger.slots[_slot_of(larger, code)] = i + 1
    return larger


@kernel
def _new_block(size, num_words):
    """Returns a `Block` with room for `size` buckets."""
    codes, costs = np.empty((size, num_words), np.uint64), np.empty(size, np.int64)
    return Block(codes, costs, np.empty(size, np.int64), np.empty(size, np.int64))


@kernel
def listed_buckets(codes, margins, budget):
    """Returns the first `budget` buckets of one query.

    Args:
      codes: uint64 [t, w], the codes of the query.
      margins: float32 [t, q], finite and at least 0.
      budget: Number of buckets.

    Returns:
      Their codes [budget, w], costs and query codes.
    """
    num_codes, num_words = codes.shape
    steps, orders = np.empty((2, *margins.shape), np.int64)
    frontier = _new_frontier(num_codes, num_words, num_codes * (budget + 1) + 1)
    block, owners = _new_block(budget, num_words), np.empty(budget, np.int64)
    unit = fill_steps(margins, steps)
    _start(frontier, codes, steps, orders)
    _list_block(frontier, codes, steps, orders, budget, block, owners)
    return block.codes, block.costs * unit, owners


@kernel
def probed_items(base, delta, queries, margins, num_bits, budget, k, words, done, answers):
    """Looks at the buckets of least quantization distance of each query.

    The arguments and the result are those of `probe.probed_items`, with queries uint64 [m, t, w].
    """
    num_queries, num_codes, num_words = queries.shape
    met = Met(
        np.empty(1024, np.int64), np.empty(1024, np.float32), np.zeros(2048, np.uint64), words
    )
    frontier = _new_frontier(num_codes, num_words, max(1024, 2 * num_codes))
    steps = np.empty((num_codes, num_bits), np.int64)
    orders = np.empty((num_codes, num_bits), np.int64)
    block = _new_block(BLOCK, num_words)
    owners = np.empty(0, np.int64)
    base_items = BucketItems(base.offsets, base.items, base.dead)
    delta_items = BucketItems(delta.offsets, delta.items, delta.dead)
    for m in range(done, num_queries):
        codes, stamp, used = queries[m], m + 1, ZERO
        unit = fill_steps(margins[m], steps)
        probed, nonempty, candidates = 0, 0, 0
        _start(frontier, codes, steps, orders)
        while probed < budget and used < k:
            count = _list_block(
                frontier, codes, steps, orders, min(BLOCK, budget - probed), block, owners
            )
            if count == 0:
                frontier = _with_twice_the_capacity(frontier, num_words)
                continue
            num_items = look_up(base, block.codes[:count], num_bits, block.rows[:count])
            num_items += look_up(delta, block.codes[:count], num_bits, block.delta_rows[:count])
            met = with_room(met, used, min(num_items, k - used), stamp)
            looked_at, occupied, read, used = take_block(
                base_items, delta_items, block, count, unit, k, stamp, met, used
            )
            probed += looked_at
            nonempty += occupied
            candidates += read
        clear_bits(met.bits, met.item[:used])
        if not has_answered(answers, m, met, used, probed, nonempty, candidates):
            return m, used
    return num_queries, ZERO
