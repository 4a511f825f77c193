"""Retrieval by predicted labels: the rival that needs no hash code.

A network that was trained on labels can file each image in the inverted lists of its predicted
labels, and rank by its label probabilities (Sablayrolles et al., "How should we evaluate supervised
hashing?", ICASSP 2017). It can return nothing that its labels do not describe.
"""

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mch_jax.evaluation import asymmetric, equal_cost
from mch_jax.evaluation.equal_cost import Found, Relevance

_BLOCK = 64  # queries that are compared with the database at a time
_RIDGE = 1.0


def probabilities(label_logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Returns the probability of each label."""
    return 1 / (1 + np.exp(-label_logits.astype(np.float64)))


def fitted(
    logits: Float[np.ndarray, "n q"],
    labels: UInt8[np.ndarray, "n c"],
    others: Sequence[Float[np.ndarray, "_ q"]],
) -> list[Float[np.ndarray, "_ c"]]:
    """Returns label probabilities for a base model without a label head.

    They are those of a ridge regression from the hash layer's logits, cut to [0, 1].

    Args:
      logits: Logits of the training photos.
      labels: Their multi-hot labels.
      others: Logits of further photos, for which the probabilities are returned.
    """
    mean, scale = logits.mean(0), np.maximum(logits.std(0), 1e-6)
    x, bias = (logits - mean[None]) / scale[None], labels.mean(0)
    gram = x.T @ x + _RIDGE * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, x.T @ (labels - bias[None]))
    return [
        np.clip((other - mean[None]) / scale[None] @ weight + bias[None], 0, 1) for other in others
    ]


def lists(probability: Float[np.ndarray, "n c"]) -> Bool[np.ndarray, "n c"]:
    """Returns the labels in whose lists each image is: the likely ones, or else the likeliest."""
    members = probability >= 0.5
    members[np.arange(len(members)), probability.argmax(1)] = True
    return members


def probed(
    query_probability: Float[np.ndarray, "m c"],
    members: Bool[np.ndarray, "n c"],
    relevance: Relevance,
    budgets: Sequence[int] = equal_cost.BUDGETS,
) -> Found:
    """Returns the measures of the items in the lists of each query's likeliest labels.

    Args:
      query_probability: Probability of each label of the queries.
      members: Which images are in the list of each label.
      relevance: Which items are relevant.
      budgets: Numbers of lists looked at. There are no more than labels.
    """
    rank = np.argsort(np.argsort(-query_probability, 1, kind="stable"), 1)
    offsets, items, candidates = [], [], []
    for budget in budgets:
        chosen = (rank < budget).astype(np.float32)
        blocks = []
        for first in range(0, len(chosen), _BLOCK):
            blocks += list(chosen[first : first + _BLOCK] @ members.T.astype(np.float32) > 0)
        found = [np.flatnonzero(block) for block in blocks]
        offsets.append(np.cumsum([0, *map(len, found)]))
        items.append(np.concatenate(found))
        candidates.append((chosen @ members.sum(0)).astype(np.int64))
    return equal_cost.found(relevance, offsets, items, candidates)


def average_precision(
    query_probability: Float[np.ndarray, "m c"],
    probability: Float[np.ndarray, "n c"],
    query_labels: UInt8[np.ndarray, "m classes"],
    labels: UInt8[np.ndarray, "n classes"],
) -> Float[np.ndarray, " counted"]:
    """Returns the average precision of ranking by the probability that a label is shared.

    It is 1 - prod_c (1 - p_c q_c), with the labels of both images taken as independent.

    Args:
      query_probability: Probability of each label of the queries.
      probability: Probability of each label of the database's images.
      query_labels: Multi-hot labels of the queries.
      labels: Multi-hot labels of the items.
    """

    def none_shared(rows: slice) -> np.ndarray:
        columns = zip(query_probability[rows].T, probability.T, strict=True)
        return functools.reduce(np.multiply, (1 - np.outer(a, b) for a, b in columns))

    return asymmetric.ranked(none_shared, query_labels, labels)
