"""Sorting, selection and growing buffers, as kernels."""

import numpy as np

from mch_jax.kernels.jit import kernel, leaf


@kernel
def ensure_capacity(buffer, used, more):
    """Returns the buffer, or a copy at least twice as large if `more` values do not fit.

    Args:
      buffer: An array whose first `used` values count.
      used: Number of values to keep.
      more: Number of values that have to fit after them.
    """
    if used + more <= buffer.size:
        return buffer
    larger = np.empty(max(2 * buffer.size, used + more), buffer.dtype)
    larger[:used] = buffer[:used]
    return larger


@leaf
def sort(values):
    """Sorts in place by Shell's method, which is insertion sort for a few values."""
    gap = 1
    while 9 * gap < values.size:
        gap = 3 * gap + 1
    while gap:
        for i in range(gap, values.size):
            value, j = values[i], i
            while j >= gap and values[j - gap] > value:
                values[j] = values[j - gap]
                j -= gap
            values[j] = value
        gap //= 3


@leaf
def sort_unique(values, limit):
    """Sorts and removes repeats in place; returns how many values remain, at most `limit`."""
    sort(values)
    count = 0
    for i in range(values.size):
        if count == limit:
            break
        if count == 0 or values[i] != values[count - 1]:
            values[count] = values[i]
            count += 1
    return count


@kernel
def select(values, low, position):
    """Partitions values[low:] so that values[position] is what sorting would put there.

    Smaller or equal values lie before it, larger or equal ones after it (quickselect).
    """
    high = values.size - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if position <= j:
            high = j
        elif position >= i:
            low = i
        else:
            return
