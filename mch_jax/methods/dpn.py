"""DPN: "Deep Polarized Network", Fan et al., IJCAI 2020.

Each class has a random centre with as many bits of either sign. The centre t_i of a photo with
several labels has in every bit the sign of the majority of its labels' centres. The loss is a hinge
in every bit of the logits u,

    mean over i, k of  max(0, m - t_ik u_ik)

which bounds the Hamming distance between the code and the centre: at m = 1 each wrong bit costs at
least 1. It needs no quantization loss. There is no loss of two photos. The reward uses that of
`centres.photo_pair_loss`. Centres stay as they are drawn; the paper's update of the centres by the
codes of each class is not used.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, ScalarLike

from mch_jax import pairs
from mch_jax.methods.base import Batch, Objective, no_penalty
from mch_jax.methods.centres import majority, photo_pair_loss, random_centres


def dpn(num_bits: int, *, margin: float = 1.0) -> Objective:
    """Returns the Deep Polarized Network with randomly drawn centres.

    Args:
      num_bits: Code length q.
      margin: Margin m that a logit has to reach on the side of its centre's bit.
    """

    def relax(logits: Float[Array, "b q"], progress: ScalarLike) -> Float[Array, "b q"]:
        del progress
        return jnp.tanh(logits)

    def batch_loss(batch: Batch) -> Float[Array, ""]:
        num_classes = batch.targets.shape[1]
        rng = np.random.default_rng([num_bits, num_classes])
        centre = majority(batch.targets, random_centres(num_classes, num_bits, rng))
        return jnp.mean(jnp.maximum(margin - centre * batch.logits, 0.0))

    pair_loss = functools.partial(photo_pair_loss, num_bits=num_bits)
    return Objective(relax, pair_loss, pairs.balanced_weight, no_penalty, batch_loss)
