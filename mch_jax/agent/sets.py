"""Sets of codes chosen one after the other, each for what it adds to those chosen before.

The reward of Eq. 6 judges every region alone. Two crops that show the same object then count the
same gain twice. A greedy set takes the best region first, and the others for what is left to gain.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from mch_jax import codes
from mch_jax.agent.evidence import Reference

_PHOTOS = 8  # photos that are compared with the reference at a time


def value_table(
    similarity: Float[Array, " n"], values: Float[Array, "n 2 distances"]
) -> Float[Array, "n distances"]:
    """Returns the expected value of one photo at each distance from each reference photo.

    Args:
      similarity: Similarity s_ij of the photo to each reference photo, or its probability.
      values: Values of a dissimilar (row 0) and of a similar item (row 1), as in `Reference`.
    """
    similar = similarity[:, None]
    return (1 - similar) * values[:, 0] + similar * values[:, 1]


def look_up(table: Float[Array, "n distances"], distance: Int[Array, "r n"]) -> Float[Array, "r n"]:
    """Returns the value at a distance from each reference photo."""
    first = jnp.arange(len(table)) * table.shape[1]
    return table.ravel()[first[None] + distance]


class Greedy(NamedTuple):
    """A greedy choice among the regions of photos, which goes on until all of them are taken.

    Attributes:
      score: The smallest score up to each region's turn. The regions with a score above a threshold
        are the set of a choice that stops below it.
      turn: Number of regions that are taken before each region.
    """

    score: Float[Array, "b regions"]
    turn: Int[Array, "b regions"]


def by_turns(
    scores: Callable[[Bool[Array, "b t"]], Float[Array, "b regions"]],
    kept: Bool[Array, "b t"],
) -> Greedy:
    """Returns the greedy choice by scores that depend on the codes that a photo has already.

    Args:
      scores: Maps a mask of kept codes to the score of each region.
      kept: Mask of the codes that each photo has before the first turn, the whole photo's alone.
    """
    num_photos, num_regions = kept.shape[0], kept.shape[1] - 1
    each = jnp.arange(num_photos)

    def one(state, turn):
        kept, lowest, greedy = state
        score = jnp.where(kept[:, 1:], -jnp.inf, scores(kept))
        best = jnp.argmax(score, -1)
        lowest = jnp.minimum(lowest, score[each, best])
        greedy = Greedy(
            greedy.score.at[each, best].set(lowest), greedy.turn.at[each, best].set(turn)
        )
        return (kept.at[each, best + 1].set(True), lowest, greedy), None

    empty = jnp.zeros((num_photos, num_regions))
    start = (kept, jnp.full(num_photos, jnp.inf), Greedy(empty, empty.astype(jnp.int32)))
    (_, _, greedy), _ = jax.lax.scan(one, start, jnp.arange(num_regions))
    return greedy


@jax.jit
def by_gain(
    packed: UInt32[Array, "b t w"], similarity: Float[Array, "b n"], reference: Reference
) -> Greedy:
    """Returns the greedy choice by the mean gain over the reference photos.

    Args:
      packed: Packed codes of the regions, the whole photo first. Its code is always in the set.
      similarity: Similarity s_ij, or its probability for an expected gain.
      reference: Photos to measure against.
    """
    values, reference_packed = jnp.asarray(reference.values), jnp.asarray(reference.packed)

    def one(photo):
        packed, similarity = photo
        distance = codes.hamming_distance(packed[:, None], reference_packed[None])
        table = value_table(similarity, values)

        def scores(kept):
            nearest = jnp.where(kept[0, :, None], distance, table.shape[1]).min(0, keepdims=True)
            nearer = jnp.minimum(distance[1:], nearest)
            return (look_up(table, nearer) - look_up(table, nearest)).mean(-1)[None]

        greedy = by_turns(scores, jnp.arange(len(packed))[None] == 0)
        return Greedy(*(x[0] for x in greedy))

    return jax.lax.map(one, (packed, similarity), batch_size=_PHOTOS)
