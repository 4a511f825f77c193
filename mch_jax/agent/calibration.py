"""The choice of the keep threshold: never fewer relevant photos than with the base's codes alone.

The policy's keep probabilities are estimates. With few training photos, or a base loss that hardly
tells one code from another, they can be too high, and the codes they keep then lower the measures.
The threshold is therefore chosen by what the kept codes do to photos that neither the base model
nor the policy has learned from, each of them a query against the others.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8, UInt32

from mch_jax import codes, histograms, metrics, pairs

NONE = 2.0  # a threshold above every probability: no region is kept
NUM_ERRORS = 1.645  # standard errors below the mean of a one-sided 95 % bound
NUM_THRESHOLDS = 10
MEASURES = ("map", "p_at_h0", "r_at_h0")
GUARDED = ("map", "p_at_h0")  # the measures that must not fall


class Trial(NamedTuple):
    """What a threshold does to photos that are queries against each other.

    Attributes:
      threshold: The keep threshold.
      codes: Number of codes of the photos.
      scores: Score of each query in each of `MEASURES`.
    """

    threshold: float
    codes: float
    scores: Float[np.ndarray, "m measures"]


class Gain(NamedTuple):
    """What a threshold gains over the base's codes alone, estimated on photos left out.

    Attributes:
      threshold: The keep threshold.
      codes: Mean number of codes per photo.
      mean: Mean difference over the queries in each of `MEASURES`.
      lower: Its one-sided lower 95 % bound.
    """

    threshold: float
    codes: float
    mean: tuple[float, ...]
    lower: tuple[float, ...]


def thresholds(keep_threshold: float) -> list[float]:
    """Returns the thresholds to choose from: the given one, higher ones, and `NONE`."""
    rising = np.linspace(keep_threshold, 1, NUM_THRESHOLDS + 1)[:-1]
    return [*(round(float(x), 4) for x in rising), NONE]


def trial(
    packed: UInt32[np.ndarray, "n t w"],
    keep_prob: Float[np.ndarray, "n t"],
    labels: UInt8[np.ndarray, "n c"],
    num_bits: int,
    threshold: float,
) -> Trial:
    """Returns the scores of photos as queries against each other, under a keep threshold.

    A query has the code of its whole photo alone, and is no item of its own search. Queries without
    a relevant photo are left out.

    Args:
      packed: Packed codes of the photos' regions, the whole photo first.
      keep_prob: Keep probability of each code. The whole photo's code is always kept.
      labels: Multi-hot labels of the photos.
      num_bits: Code length q.
      threshold: The keep threshold.
    """
    kept = keep_prob >= threshold
    kept[:, 0] = True
    items = histograms.items_last(np.where(kept[:, :, None], packed, packed[:, :1]))
    words = pairs.pack_labels(labels)
    counts = histograms.label_histogram(
        packed[:, 0], items, words, np.ascontiguousarray(words.T), num_bits
    )
    counts[:, 0, 1] -= words.any(1)
    counts[:, 0, 0] -= ~words.any(1)
    counts = counts[metrics.has_relevant(counts)]
    scores = metrics.scores(counts)
    return Trial(threshold, float(codes.first_of_equals(packed, kept).sum()), scores)


def gains(folds: Sequence[Sequence[Trial]], num_photos: int) -> list[Gain]:
    """Returns the gain of each threshold over the last one, paired by query.

    Args:
      folds: For each fold of photos its trials, at the same thresholds, the last of them `NONE`.
      num_photos: Number of photos in all folds.
    """
    rows = []
    for trials in zip(*folds, strict=True):
        difference = np.concatenate(
            [own.scores - fold[-1].scores for own, fold in zip(trials, folds, strict=True)]
        )
        mean = difference.mean(0)
        error = difference.std(0) / np.sqrt(max(len(difference), 1))
        rows.append(
            Gain(
                trials[0].threshold,
                sum(own.codes for own in trials) / num_photos,
                tuple(mean.tolist()),
                tuple((mean - NUM_ERRORS * error).tolist()),
            )
        )
    return rows


def choose(rows: Sequence[Gain], recall_weight: float) -> Gain:
    """Returns the threshold with the largest gain among those that do not lower a measure.

    The lower bounds of mAP and of P@H=0 must not be below 0; the last row, which keeps no region,
    always fulfils this. The gain is that of the policy's reward: mAP plus weighted recall within
    radius 0.

    Args:
      rows: Result of `gains`.
      recall_weight: Weight of recall, as in `evidence.values`.
    """
    guarded = [MEASURES.index(name) for name in GUARDED]
    safe = [row for row in rows if all(row.lower[i] >= 0 for i in guarded)]
    recall = MEASURES.index("r_at_h0")
    return max(safe, key=lambda row: row.mean[0] + recall_weight * row.mean[recall])
