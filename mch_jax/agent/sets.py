"""Sets of codes chosen one after the other, each for what it adds to those chosen before.

The reward of Eq. 6 judges every region alone. Two crops that show the same object then count the
same gain twice. A greedy set takes the best region first, and the others for what is left to gain.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

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


@jax.jit
def greedy_gains(
    packed: UInt32[Array, "b t w"], similarity: Float[Array, "b n"], reference: Reference
) -> Float[Array, "b regions"]:
    """Returns what each region adds to the set of the regions that a greedy choice takes before it.

    The choice takes the region with the largest mean gain over the reference photos, then the best
    of the others beside it, and so on. A region's result is the smallest gain up to its turn, so
    that the regions with a result above a threshold are the set of a choice that stops there.

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

        def turn(state, _):
            nearest, lowest, result = state
            nearer = jnp.minimum(distance[1:], nearest[None])
            gain = (look_up(table, nearer) - look_up(table, nearest[None])).mean(-1)
            best = jnp.argmax(jnp.where(jnp.isnan(result), gain, -jnp.inf))
            lowest = jnp.minimum(lowest, gain[best])
            return (nearer[best], lowest, result.at[best].set(lowest)), None

        num_regions = len(packed) - 1
        start = (distance[0], jnp.float32(jnp.inf), jnp.full(num_regions, jnp.nan))
        (_, _, result), _ = jax.lax.scan(turn, start, None, num_regions)
        return result

    return jax.lax.map(one, (packed, similarity), batch_size=_PHOTOS)
