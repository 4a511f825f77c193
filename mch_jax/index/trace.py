"""The buckets that `BucketIndex.probe` looks at for one query, one by one, to show or to check."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8, UInt64

from mch_jax.index.bucket_index import BucketIndex
from mch_jax.index.words import MAX_BITS, checked_margins, words_from_bytes
from mch_jax.kernels import probe_long
from mch_jax.kernels.masks import fill_cheapest_masks, fill_steps

MAX_TRACED = 4096


class ProbedBuckets(NamedTuple):
    """The buckets that are looked at for one query, in order, with the items that they hold.

    Attributes:
      code: Code of each bucket.
      cost: Its quantization distance.
      query_code: Which of the query's codes the bucket is at this distance from.
      offsets: The items of bucket i are item[offsets[i]:offsets[i + 1]].
      item: Items, ascending within a bucket. An item with several codes may occur again.
    """

    code: UInt8[np.ndarray, "b bytes"]
    cost: Float32[np.ndarray, " b"]
    query_code: Int64[np.ndarray, " b"]
    offsets: Int64[np.ndarray, " b+1"]
    item: Int64[np.ndarray, " n"]


def probed_buckets(
    index: BucketIndex,
    query_codes: UInt8[np.ndarray, "t bytes"],
    margins: Float32[np.ndarray, "t q"],
    budget: int,
) -> ProbedBuckets:
    """Returns the buckets that `index.probe` looks at for one query, empty ones included.

    With all margins equal to 1, these are the buckets in the order of Algorithm 1: by Hamming
    distance, then by ascending flip mask.

    Args:
      index: The index.
      query_codes: The codes of the query, at least one.
      margins: Absolute value of the logit of each bit of each code.
      budget: Number of buckets.

    Raises:
      ValueError: budget is not in 1 to 4,096, or codes or margins have the wrong form.
    """
    if not 1 <= budget <= MAX_TRACED:
        raise ValueError(f"budget is {budget}, expected 1 to {MAX_TRACED}")
    num_bits, num_codes = index.num_bits, len(query_codes)
    words = words_from_bytes(query_codes, num_bits)
    if not num_codes:
        raise ValueError("there is no query code, expected at least one")
    (margins,) = checked_margins(np.asarray(margins)[None], (1, num_codes), num_bits)
    if num_bits > MAX_BITS:
        chosen, cost, slots = probe_long.listed_buckets(words, margins, int(budget))
        return _with_items(index, chosen, cost, slots)
    steps, order = np.empty((num_codes, num_bits), np.int64), np.empty(num_bits, np.int64)
    unit = fill_steps(margins, steps)
    budget = min(int(budget), 1 << num_bits)
    # A bucket among the first ones is as early in the list of its own query code.
    costs = np.empty((num_codes, budget), np.int64)
    masks = np.empty((num_codes, budget), np.uint64)
    for slot in range(num_codes):
        fill_cheapest_masks(steps[slot], order, budget, costs[slot], masks[slot])
    buckets = (words[:, None] ^ masks).ravel()
    slots = np.repeat(np.arange(num_codes), budget)
    ranked = np.lexsort((slots, masks.ravel(), costs.ravel()))
    _, first = np.unique(buckets[ranked], return_index=True)
    chosen = ranked[np.sort(first)[:budget]]
    return _with_items(index, buckets[chosen], costs.ravel()[chosen] * unit, slots[chosen])


def _with_items(
    index: BucketIndex,
    words: UInt64[np.ndarray, " b *w"],
    cost: Float[np.ndarray, " b"],
    query_code: Int64[np.ndarray, " b"],
) -> ProbedBuckets:
    """Returns buckets with the items that they hold."""
    raw = words.astype("<u8").view(np.uint8).reshape(len(words), -1)
    code = np.ascontiguousarray(raw[:, : -(-index.num_bits // 8)])
    held = index.within(code, 0)
    return ProbedBuckets(code, cost.astype(np.float32), query_code, held.offsets, held.item)
