"""The codes that a query is searched with: the whole photo's, or those of several regions.

A query has one code in the paper, and in every measure unless it is said otherwise. With several
codes, an item or a bucket counts at the query code that is nearest to it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from mch_jax.index import BucketIndex, NearestItems

CHOICES = ("one", "agent", "all")


def check(choice: str, name: str) -> None:
    """Checks that a choice of query codes exists.

    Args:
      choice: One of CHOICES.
      name: Name of the argument, for the error message.

    Raises:
      ValueError: It does not.
    """
    if choice not in CHOICES:
        raise ValueError(
            f"{name} is {choice!r}, expected one (the whole photo's code), agent (those that the "
            "agent keeps) or all (those of all six regions)"
        )


class QueryRegions(NamedTuple):
    """Codes and logits of the regions of queries.

    Attributes:
      codes: Packed codes, the whole photo's first.
      kept: Which codes the agent keeps.
      logits: Logits whose signs are the codes.
    """

    codes: UInt8[np.ndarray, "m t bytes"]
    kept: Bool[np.ndarray, "m t"]
    logits: Float[np.ndarray, "m t q"]

    @property
    def margins(self) -> Float32[np.ndarray, "m t q"]:
        """Absolute value of each logit: how certain the bit is."""
        return np.abs(self.logits).astype(np.float32)

    def chosen(self, choice: str) -> "QueryRegions":
        """Returns the codes that each query is searched with; those kept are marked.

        A query with fewer codes than others repeats its first one, which changes no answer.

        Args:
          choice: `one`, `agent` or `all`.
        """
        every = np.ones_like(self.kept)
        if choice == "one":
            return QueryRegions(self.codes[:, :1], every[:, :1], self.logits[:, :1])
        kept = self.kept if choice == "agent" else every
        slot = np.where(kept, np.arange(self.codes.shape[1]), 0)[:, :, None]
        codes, logits = (np.take_along_axis(x, slot, 1) for x in (self.codes, self.logits))
        return QueryRegions(codes, kept, logits)


def unit_margins(
    query_codes: UInt8[np.ndarray, "m *t bytes"], num_bits: int
) -> Float32[np.ndarray, "m *t q"]:
    """Returns margins of 1, with which buckets are probed in the order of Hamming distance."""
    return np.ones((*query_codes.shape[:-1], num_bits), np.float32)


def ordering_margins(margins: Float32[np.ndarray, "*t q"]) -> Float32[np.ndarray, "*t q"]:
    """Returns margins that rank by Hamming distance, and equal distances by asymmetric distance.

    Every margin is 1 and a share of at most 1/2 for all bits together, so that a bit more always
    costs more. With several codes of a query, the share is the same for all of them. Asymmetric
    distances that differ by less than about 2^-22 of the largest one may count as equal.

    Args:
      margins: Margins of the codes of one query.
    """
    total = margins.sum(-1, dtype=np.float64).max(initial=0)
    if not total:
        return np.ones_like(margins)
    return (1 + margins / (2 * total)).astype(np.float32)


def nearest(
    index: BucketIndex,
    query_codes: UInt8[np.ndarray, "m t bytes"],
    k: int,
    allowed: Int[np.ndarray, " a"] | None = None,
) -> NearestItems:
    """Returns the k items nearest to any code of each query, exactly.

    Each of the k items is among the k nearest of the code that it is nearest to. The numbers of
    buckets are sums over the searches for the different codes of a query.

    Args:
      index: The index to search.
      query_codes: Codes of the queries. Repeated codes of a query count once.
      k: Number of items, at least 1.
      allowed: The items that may be found, ascending; all by default.
    """
    count, num_codes, num_bytes = query_codes.shape
    flat = index.search(query_codes.reshape(count * num_codes, num_bytes), k, allowed=allowed)
    items, bits, probed, nonempty = (x.reshape(count, num_codes, -1) for x in flat)
    earlier = np.tril(np.ones((num_codes, num_codes), bool), -1)
    equal = (query_codes[:, :, None] == query_codes[:, None]).all(3)
    is_first = ~(equal & earlier[None]).any(2)
    item, distance = np.full((count, k), -1, np.int64), np.full((count, k), -1, np.int32)
    for m in range(count):
        order = np.lexsort((items[m].ravel(), bits[m].ravel()))
        order = order[items[m].ravel()[order] >= 0]
        _, seen = np.unique(items[m].ravel()[order], return_index=True)
        best = order[np.sort(seen)[:k]]
        item[m, : len(best)] = items[m].ravel()[best]
        distance[m, : len(best)] = bits[m].ravel()[best]
    totals = (np.where(is_first, x[:, :, 0], 0).sum(1) for x in (probed, nonempty))
    return NearestItems(item, distance, *totals)
