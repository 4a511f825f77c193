"""Kernels that list flip masks by ascending quantization distance.

The quantization distance of a bucket is the sum of the margins of the bits in which it differs from
the query's code. Sums have to be exact, or else the order of nearly equal ones would depend on the
order of the additions. Margins are therefore integers here: multiples of a power of two that is
2^-56 of the largest margin or less. Those of at least 2^-32 of the largest one are represented
exactly, and no sum of 64 overflows. Of codes of more than 64 bits, whose sums have up to 1,024
terms, the unit is 2^-52 of the largest margin, and margins of at least 2^-28 of it are exact.
"""

import math

import numpy as np

from mch_jax.kernels.arrays import sort
from mch_jax.kernels.jit import leaf

STEP_BITS = 56  # the largest margin is below 2^STEP_BITS units
LONG_STEP_BITS = 52  # of codes of more than 64 bits
BIT_MASK = 63


@leaf
def fill_steps(margins, steps):
    """Fills `steps` with margins in units of a power of two; returns that unit.

    Args:
      margins: float32 [t, q], those of all codes of a query.
      steps: int64 [t, q].
    """
    step_bits = STEP_BITS if margins.shape[1] <= 64 else LONG_STEP_BITS
    largest = 0.0
    for row in range(margins.shape[0]):
        for bit in range(margins.shape[1]):
            largest = max(largest, np.float64(margins[row, bit]))
    _, exponent = math.frexp(largest)
    scale = math.ldexp(1.0, step_bits - exponent)
    for row in range(margins.shape[0]):
        for bit in range(margins.shape[1]):
            steps[row, bit] = np.int64(np.float64(margins[row, bit]) * scale + 0.5)
    return 1.0 / scale


@leaf
def _num_unflipped(costs, masks, count, size, step, flip):
    """Returns how many of the `size` smallest masks do not have a further bit.

    The masks are the first `count` and the same ones with the bit `flip`, which adds `step` to
    their costs (binary search for the point where the merge of the two lists ends).
    """
    low, high = max(0, size - count), min(count, size)
    while low < high:
        middle = (low + high) // 2
        cost, mask = costs[size - 1 - middle] + step, masks[size - 1 - middle] | flip
        if costs[middle] < cost or (costs[middle] == cost and masks[middle] < mask):
            low = middle + 1
        else:
            high = middle
    return low


@leaf
def fill_cheapest_masks(steps, order, size, costs, masks):
    """Fills the `size` flip masks of least cost, by cost, and equal ones in ascending order.

    The list begins with the empty mask. Each bit, cheapest first, merges the list with a copy of
    itself that has the bit flipped. The merge is done in place from the end, and stops where no
    flipped mask is left: in most cases only the last part of the list moves.

    Args:
      steps: int64 [q], the cost of each bit.
      order: int64 [q], a buffer.
      size: Number of masks, at most 2^q.
      costs: int64, filled with the costs of the masks.
      masks: uint64, filled with the masks.
    """
    for bit in range(steps.size):
        order[bit] = (steps[bit] << 6) | bit
    sort(order)
    costs[0], masks[0], count = 0, 0, 1
    for entry in order:
        step, flip = entry >> 6, np.uint64(1) << np.uint64(entry & BIT_MASK)
        if count == size and step > costs[count - 1]:
            break
        larger = min(2 * count, size)
        kept = _num_unflipped(costs, masks, count, larger, step, flip) - 1
        for flipped in range(larger - kept - 2, -1, -1):
            cost, mask = costs[flipped] + step, masks[flipped] | flip
            while kept >= 0 and (
                costs[kept] > cost or (costs[kept] == cost and masks[kept] > mask)
            ):
                costs[kept + flipped + 1], masks[kept + flipped + 1] = costs[kept], masks[kept]
                kept -= 1
            costs[kept + flipped + 1], masks[kept + flipped + 1] = cost, mask
        count = larger
