"""ADSH: "Asymmetric Deep Supervised Hashing", Jiang and Li, AAAI 2018.

The images of a sample go through the network, u_i = tanh(logits). The whole training set has free
binary codes v_j, called database codes. Together they minimise

    sum_ij (<u_i, v_j> - q S_ij)^2 + gamma sum_i |v_i - u_i|^2                (J)

Each turn draws a sample, trains the network for a few epochs on `train_loss`, then updates the v_j
by `update_database_codes`. S_ij is 1 for similar pairs and, in training, -r for dissimilar pairs,
where r is the ratio of similar to dissimilar pairs in the sample's rows, so that both kinds have
the same total weight.

The reward uses Table 1 of MCH, where S is in {-1, +1} and gamma is absent. The v_j serve training
only. At evaluation every code comes from the network, because v_j is computed from the image's own
labels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike

from mch_jax import pairs
from mch_jax.methods.base import Alternating, Objective, no_penalty


def adsh(num_bits: int) -> Objective:
    """Returns the losses of Table 1, (<u_i, u_j> - q (2 s - 1))^2 with <u_i, u_j> = q - 2 d."""

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        del progress
        return jnp.tanh(logits)

    def pair_loss(distance: Float[Array, "*s"], similar: Bool[Array, "*s"]) -> Float[Array, "*s"]:
        return (num_bits - 2.0 * distance - jnp.where(similar, num_bits, -num_bits)) ** 2

    return Objective(relax, pair_loss, pairs.unit_weight, no_penalty)


def alternating(*, sample: int = 2000, epochs: int = 3, gamma: float = 200.0) -> Alternating:
    """Returns ADSH's training.

    Args:
      sample: Number of images that the network sees between two updates of the database codes.
      epochs: Number of epochs over that sample.
      gamma: Weight of the quantization loss.
    """

    def loss(relaxed, rows, similar, codes, dissimilar, keys):
        del keys
        target = soft_similarity(similar, dissimilar)
        return train_loss(relaxed, codes[rows], codes, target, gamma=gamma)

    def update(codes, relaxed, rows, similar, dissimilar):
        target = soft_similarity(similar, dissimilar)
        return update_database_codes(codes, relaxed, rows, target, gamma=gamma)

    return Alternating(sample, epochs, dissimilar_target, loss, update)


def dissimilar_target(similar: Bool[Array, "m n"]) -> Float[Array, ""]:
    """Returns -r, the value of S for dissimilar pairs, from the sampled rows of the similarity."""
    num_similar = jnp.sum(similar)
    return -num_similar / jnp.maximum(similar.size - num_similar, 1)


def soft_similarity(similar: Bool[Array, "m n"], dissimilar: ScalarLike) -> Float[Array, "m n"]:
    """Returns S, which is 1 for similar pairs and `dissimilar` for the others."""
    return jnp.where(similar, 1.0, dissimilar)


def train_loss(
    relaxed: Float[Array, "b q"],
    own_codes: Float[Array, "b q"],
    database_codes: Float[Array, "n q"],
    target: Float[Array, "b n"],
    *,
    gamma: ScalarLike = 200.0,
) -> Float[Array, ""]:
    """Returns (J) of a batch, divided by n b, with the database codes held.

    If a batch is split among devices, the mean over devices is the value of the whole batch.

    Args:
      relaxed: Outputs u_i of the network for the batch.
      own_codes: Database codes v_i of the same images.
      database_codes: Database codes v_j of the training set.
      target: Rows of S that belong to the batch.
      gamma: Weight of the quantization loss.
    """
    num_bits, num_codes = relaxed.shape[-1], len(database_codes)
    pair_loss = jnp.mean((relaxed @ database_codes.T - num_bits * target) ** 2)
    penalty = jnp.mean(jnp.sum((own_codes - relaxed) ** 2, axis=-1))
    return pair_loss + gamma / num_codes * penalty


def update_database_codes(
    database_codes: Float[Array, "n q"],
    relaxed: Float[Array, "m q"],
    rows: Int[Array, " m"],
    target: Float[Array, "m n"],
    *,
    gamma: ScalarLike = 200.0,
) -> Float[Array, "n q"]:
    """Returns the database codes after one sweep of coordinate descent over the bits.

    With the other bits held, (J) is linear in bit k of the codes. Its minimum is at

        V_k = -sign(2 V_{-k} (U^T U)_{-k,k} + P_k),    P = -2 q S^T U - 2 gamma U'

    where U' has u_i in row `rows[i]` and zeros elsewhere. Starting from codes in {-1, +1}, (J)
    never increases. Zeros are a valid start.

    Args:
      database_codes: Codes v_j in {-1, +1}.
      relaxed: Outputs u_i of the network for the sample.
      rows: Row of each sampled image in the database, without repetition.
      target: Rows of S that belong to the sample.
      gamma: Weight of the quantization loss.
    """
    num_bits = relaxed.shape[-1]
    linear = -2.0 * num_bits * target.T @ relaxed
    linear = linear.at[rows].add(-2.0 * gamma * relaxed)
    gram = relaxed.T @ relaxed
    gram -= jnp.diag(jnp.diag(gram))  # a bit does not interact with itself: v^2 = 1

    def update_bit(k: Int[Array, ""], codes: Float[Array, "n q"]) -> Float[Array, "n q"]:
        slope = 2.0 * codes @ gram[:, k] + linear[:, k]
        return codes.at[:, k].set(jnp.where(slope <= 0, 1.0, -1.0))

    return jax.lax.fori_loop(0, num_bits, update_bit, database_codes)
