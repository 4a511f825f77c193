"""The bucket index: exact search for items that have several binary codes each.

`BucketIndex` answers queries, accepts additions and removals, and saves itself. The other functions
are for those who work with its codes or its counts:

* `words_from_bytes`, `checked_items`: codes and items as the index keeps them, checked.
* `ball_size`, `count_visits`, `visit_counts`: the counts of Algorithm 1 without an index.
* `probed_buckets`: the buckets that `probe` looks at, one by one, with their items.
* `concatenated`: the answers to several batches of queries as one.
* `merged_nearest`: the answers of several indexes as one.

| module | holds |
| --- | --- |
| `bucket_index` | `BucketIndex` |
| `answers` | the NamedTuples that it returns |
| `segment` | building a segment, and the decisions that depend on its size |
| `filters` | when the filter is made that lookups at a radius of two bits need |
| `storage` | the files of a saved index |
| `long_codes` | what differs for codes of more than 64 bits |
| `merging` | merging the answers of several indexes |
| `trace` | the buckets that a query looks at, one by one |
| `algorithm1` | the number of buckets that Algorithm 1 visits |
| `words` | codes and items from the arrays of a codes file |

The kernels are in `mch_jax.kernels`.
"""

from mch_jax.index.algorithm1 import ball_size, count_visits, visit_counts
from mch_jax.index.answers import (
    CheapestItems,
    ItemsWithin,
    NearestItems,
    ProbedItems,
    VisitedBuckets,
    concatenated,
)
from mch_jax.index.bucket_index import BucketIndex
from mch_jax.index.merging import merged_nearest
from mch_jax.index.storage import INDEX_FORMAT
from mch_jax.index.trace import ProbedBuckets, probed_buckets
from mch_jax.index.words import MAX_BITS, MAX_ITEM, MAX_LONG_BITS, checked_items, words_from_bytes

# Former names of the two kinds of answers.
Hits, Ball = NearestItems, ItemsWithin

__all__ = [
    "Ball",
    "BucketIndex",
    "CheapestItems",
    "Hits",
    "INDEX_FORMAT",
    "ItemsWithin",
    "MAX_BITS",
    "MAX_ITEM",
    "MAX_LONG_BITS",
    "NearestItems",
    "ProbedBuckets",
    "ProbedItems",
    "VisitedBuckets",
    "ball_size",
    "checked_items",
    "concatenated",
    "merged_nearest",
    "probed_buckets",
    "count_visits",
    "visit_counts",
    "words_from_bytes",
]
