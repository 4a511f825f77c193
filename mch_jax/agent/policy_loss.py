"""The policy's two actions and its losses (Eq. 7).

KEEP is 1, as in Eq. 6 and the paper's text; Eq. 4 prints the reverse.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

DISCARD, KEEP = 0, 1


def reinforce_loss(
    logits: Float[Array, "b 2"], action: Int[Array, " b"], advantage: Float[Array, " b"]
) -> Float[Array, " b"]:
    """Returns -log pi(a | h) A for each image, whose gradient is that of REINFORCE (Eq. 7).

    Args:
      logits: Logits of DISCARD and KEEP.
      action: Sampled action of each image.
      advantage: Reward of the action minus a baseline, if there is one. It takes no gradient.
    """
    log_prob = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_prob, action[:, None], 1)[:, 0]
    return -chosen * jax.lax.stop_gradient(advantage)


def expected_loss(logits: Float[Array, "b 2"], reward: Float[Array, " b"]) -> Float[Array, " b"]:
    """Returns minus the expected reward over both actions.

    Its gradient is the mean of REINFORCE's gradient over the sampled action. The reward of DISCARD
    is 0, so the expectation needs no sampling.

    Args:
      logits: Logits of DISCARD and KEEP.
      reward: Reward of KEEP. It takes no gradient.
    """
    return -jax.nn.softmax(logits)[:, KEEP] * jax.lax.stop_gradient(reward)


def entropy(logits: Float[Array, "b 2"]) -> Float[Array, " b"]:
    """Returns the entropy of the policy in nats."""
    log_prob = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_prob) * log_prob, -1)
