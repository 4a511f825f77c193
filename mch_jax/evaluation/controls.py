"""Controls beside the learned agent: the same regions' codes, chosen without it."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from mch_jax import codes, pairs
from mch_jax.agent import evidence, sets
from mch_jax.files import code_sets
from mch_jax.files.codes_file import CodeFile
from mch_jax.training.streams import Stream, generator

_BLOCK = 1024  # items whose similarity to the training photos is held at a time


def base_codes(database: CodeFile) -> CodeFile:
    """Returns the codes of the whole images alone: those of the base model."""
    _, first = np.unique(database.item, return_index=True)
    return database._replace(
        codes=database.codes[first],
        item=database.item[first],
        keep_prob=database.keep_prob[first],
        box=database.box[first],
    )


def with_kept(
    database: CodeFile, regions: Mapping[str, np.ndarray], kept: Bool[np.ndarray, "n t"]
) -> CodeFile:
    """Returns a codes file of the same items with another choice of codes.

    Args:
      database: Codes file of the items.
      regions: Codes, keep probabilities and boxes of all regions, as regions.npz has them.
      kept: True for the codes to keep.
    """
    code_set = codes.CodeSet(
        codes.from_bytes(regions["codes"], database.num_bits),
        regions["keep_prob"],
        kept,
        regions["box"],
    )
    return code_sets.flatten(code_set, database.ids, database.labels, database.num_bits)


def random_kept(
    regions: Mapping[str, np.ndarray], num_bits: int, num_codes: int, seed: int
) -> Bool[np.ndarray, "n t"]:
    """Returns a random choice among the distinct codes of each item.

    Args:
      regions: Codes of all regions, as regions.npz has them.
      num_bits: Code length q.
      num_codes: Expected number of codes in all, those of the whole images included.
      seed: Seed of the run.
    """
    packed = jnp.asarray(codes.from_bytes(regions["codes"], num_bits))
    distinct = np.asarray(codes.first_of_equals(packed, jnp.ones(packed.shape[:2], bool)))
    rate = (num_codes - len(distinct)) / max(distinct.sum() - len(distinct), 1)
    kept = distinct & (generator(seed, Stream.RANDOM_CONTROL).random(distinct.shape) < rate)
    kept[:, 0] = True
    return kept


def average_precision_kept(
    database: CodeFile, regions: Mapping[str, np.ndarray], is_train: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, "n t"]:
    """Returns the greedy sets of codes that raise the training photos' average precision most.

    The gain of a code is measured with the items' own labels by the table of `evidence.values`, the
    derivative of the average precision of each training photo as a query. The oracle of the base
    loss sums over the same training photos.

    Args:
      database: Codes file of the items.
      regions: Codes of all regions, as regions.npz has them.
      is_train: Which items are training photos.
    """
    packed = codes.from_bytes(regions["codes"], database.num_bits)
    labels = pairs.pack_labels(database.labels)
    reference = evidence.reference(
        packed[is_train, 0], database.labels[is_train], database.num_bits, 0.0
    )
    kept = np.ones(packed.shape[:2], bool)
    for start in range(0, len(packed), _BLOCK):
        block = slice(start, start + _BLOCK)
        similar = pairs.similarity(labels[block], labels[is_train])
        greedy = sets.by_gain(packed[block], similar.astype(jnp.float32), reference)
        kept[block, 1:] = np.asarray(greedy.score) > 0
    return kept


def controls(
    database: CodeFile,
    regions: Mapping[str, np.ndarray],
    is_train: Bool[np.ndarray, " n"],
    seed: int,
) -> dict[str, CodeFile]:
    """Returns the database's codes under each control.

    `always` keeps the codes of all regions, `random` as many as the agent on average, `oracle`
    those whose true reward, computed from the item's own labels, is positive, and `oracle_ap` those
    of `average_precision_kept`. Keeping none gives `base_codes`. If training was by neighbours, and
    labels were hidden from it, `oracle_neighbours` keeps the regions whose reward by the neighbours
    is positive.

    Args:
      database: The database's codes, chosen by the agent.
      regions: Codes, keep probabilities, boxes and rewards of all regions, as regions.npz has them.
      is_train: Which items are training photos.
      seed: Seed of the run.
    """
    never = np.zeros(regions["keep_prob"].shape, bool)
    never[:, 0] = True
    choices = {
        "always": np.ones_like(never),
        "random": random_kept(regions, database.num_bits, len(database.item), seed),
        "oracle": never | (regions["reward"] > 0),
        "oracle_ap": average_precision_kept(database, regions, is_train),
    }
    if "training_reward" in regions:
        choices["oracle_neighbours"] = never | (regions["training_reward"] > 0)
    return {name: with_kept(database, regions, kept) for name, kept in choices.items()}
