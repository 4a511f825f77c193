"""Retrieval at equal cost: what is found in the first buckets that a search looks at.

A search looks at buckets one after the other. After a budget of buckets, empty ones included, it
has found some items and read some codes. F1 and recall of the items found, compared at the same
number of buckets, of codes read, or of bytes per image, are a fair comparison of methods that
trade these against each other.

Two orders of the buckets are compared:
  hamming  By the number of flipped bits, then by ascending flip mask, as Algorithm 1 visits them.
  gqr      By quantization distance: the sum of |logit| over the flipped bits (Li et al., "A General
           and Efficient Querying Method for Learning to Hash", SIGMOD 2018).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt32

from mch_jax import pairs
from mch_jax.files.codes_file import CodeFile
from mch_jax.index import BucketIndex
from mch_jax.query_codes import unit_margins

BUDGETS = (1, 8, 33, 132)  # with 32 bits, 33 buckets are those within radius 1
ITEM_BYTES = 4  # the index keeps the item of each code as a uint32


class Found(NamedTuple):
    """What searches have found, for each budget and each query that has a relevant item.

    Attributes:
      f1: F1 of the items found, 0 if there are none.
      recall: Share of the relevant items that are found.
      candidates: Codes read, or entries of inverted lists; repeated items are counted.
    """

    f1: Float[np.ndarray, "budgets counted"]
    recall: Float[np.ndarray, "budgets counted"]
    candidates: Int[np.ndarray, "budgets counted"]


class Relevance(NamedTuple):
    """Which items are relevant to which queries: those that share a label.

    Attributes:
      queries: Packed labels of the queries.
      items: Packed labels of the database's items.
      num_relevant: Number of relevant items of each query.
    """

    queries: UInt32[np.ndarray, "m lw"]
    items: UInt32[np.ndarray, "n lw"]
    num_relevant: Int[np.ndarray, " m"]

    @property
    def counted(self) -> Bool[np.ndarray, " m"]:
        """True for the queries that have a relevant item; the others are in no mean."""
        return self.num_relevant > 0

    def of_found(
        self, offsets: Int[np.ndarray, " ends"], item: Int[np.ndarray, " found"]
    ) -> Int[np.ndarray, " m"]:
        """Returns the number of relevant items among those found for each query."""
        query = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        hit = (self.queries[query] & self.items[item]).any(1)
        return np.bincount(query[hit], minlength=len(offsets) - 1)


def found(
    relevance: Relevance,
    offsets: Sequence[Int[np.ndarray, " ends"]],
    item: Sequence[Int[np.ndarray, " _"]],
    candidates: Sequence[Int[np.ndarray, " m"]],
) -> Found:
    """Returns the measures of what was found within each budget.

    Args:
      relevance: Which items are relevant.
      offsets: For each budget, where the items of each query begin in `item`.
      item: For each budget, the items found.
      candidates: For each budget, the number of codes read for each query.
    """
    hits = np.stack([relevance.of_found(*x) for x in zip(offsets, item, strict=True)])
    sizes = np.stack([np.diff(x) for x in offsets])
    total, counted = relevance.num_relevant[None], relevance.counted
    return Found(
        f1=(2 * hits / np.maximum(sizes + total, 1))[:, counted],
        recall=(hits / np.maximum(total, 1))[:, counted],
        candidates=np.stack(candidates)[:, counted],
    )


def probed(
    index: BucketIndex,
    query_codes: UInt8[np.ndarray, "m *t bytes"],
    margins: Float[np.ndarray, "m *t q"],
    relevance: Relevance,
    budgets: Sequence[int] = BUDGETS,
) -> Found:
    """Returns the measures of the items in the first buckets of each query.

    Args:
      index: Index of the database.
      query_codes: One code of each query, or several.
      margins: What flipping each bit costs; `unit_margins` give the Hamming order.
      relevance: Which items are relevant.
      budgets: Numbers of buckets looked at, empty ones included.
    """
    answers = [index.probe(query_codes, margins, budget) for budget in budgets]
    return found(
        relevance,
        [x.offsets for x in answers],
        [x.item for x in answers],
        [x.candidates for x in answers],
    )


def means(measured: Found) -> dict[str, list[float]]:
    """Returns the means over the queries for each budget, for results.json."""
    if not measured.f1.shape[1]:
        return {name: [0.0] * len(measured.f1) for name in Found._fields}
    return {name: values.mean(1).tolist() for name, values in measured._asdict().items()}


def bytes_per_image(num_codes: int, num_images: int, num_bits: int) -> float:
    """Returns the bytes that the codes of an image take, each with the number of its item."""
    return num_codes * (-(-num_bits // 8) + ITEM_BYTES) / max(num_images, 1)


def measures(
    query: CodeFile,
    database: CodeFile,
    logits: Float[np.ndarray, "m *t q"] | None,
    num_relevant: Int[np.ndarray, " m"],
) -> dict[str, Any]:
    """Returns the measures at equal budgets by both orders of the buckets, for results.json.

    Args:
      query: Codes file of the queries.
      database: Codes file of the database.
      logits: Logits of one or several codes of each query, whose signs are the codes. Without them,
        each query has its code in `query`, and the order by quantization distance is left out.
      num_relevant: Number of relevant items of each query.
    """
    query_codes = query.codes
    if logits is not None:
        query_codes = np.packbits(logits >= 0, axis=-1, bitorder="little")
    orders = {"hamming": unit_margins(query_codes, query.num_bits)}
    if logits is not None:
        orders["gqr"] = np.abs(logits)
    index = BucketIndex.build(database.codes, database.item, database.num_bits)
    relevance = Relevance(
        pairs.pack_labels(query.labels), pairs.pack_labels(database.labels), num_relevant
    )
    return {"budget": list(BUDGETS)} | {
        name: means(probed(index, query_codes, margins, relevance))
        for name, margins in orders.items()
    }
