"""The agent: its state, its reward and the loss of its policy."""

from mch_jax.agent.policy import (
    DISCARD,
    KEEP,
    entropy,
    expected_loss,
    reinforce_loss,
    reward,
    reward_histogram,
    state,
)

__all__ = [
    "DISCARD",
    "KEEP",
    "entropy",
    "expected_loss",
    "reinforce_loss",
    "reward",
    "reward_histogram",
    "state",
]
