"""A checksum of arrays on disk, as a kernel."""

import numpy as np

from mch_jax.kernels.bits import mix
from mch_jax.kernels.jit import kernel


@kernel
def checksum(words):
    """Returns a 64-bit checksum of uint64 words, at the speed of memory.

    64 lanes multiply and shift, and their results are combined at the end. Each step is one-to-one
    in the new word and in the previous state, so that a change of a single word is always noticed.
    The checksum guards against damage, not against malice.
    """
    lanes = np.arange(64).astype(np.uint64)
    factor = np.uint64(0x9E3779B97F4A7C15)
    whole = words.size // 64
    for i in range(whole):
        row = words[64 * i : 64 * i + 64]
        for j in range(64):
            lane = (lanes[j] ^ row[j]) * factor
            lanes[j] = lane ^ (lane >> np.uint64(32))
    total = np.uint64(words.size)
    for i in range(64 * whole, words.size):
        total = mix(total ^ words[i])
    for j in range(64):
        total = mix(total ^ lanes[j])
    return total
