"""The agent, which decides for each region of an image whether its code is kept (Sec. 4.2).

state        what the paper's policy sees of a region (Eq. 3)
reward       how much keeping a region's code lowers the base loss (Eqs. 5 and 6)
policy_loss  the two actions, and the losses of the policy (Eq. 7)
evidence     state and reward for photos whose labels are unknown
sets         sets of codes chosen one after the other
calibration  the keep threshold, by what the kept codes gain on photos left out
step         one training step of the policy
"""

from mch_jax.agent.policy_loss import DISCARD, KEEP, entropy, expected_loss, reinforce_loss
from mch_jax.agent.reward import reward_histogram, rewards
from mch_jax.agent.state import states
from mch_jax.agent.step import AgentTrainState, initial_state, optimizer, policy_step

__all__ = [
    "DISCARD",
    "KEEP",
    "AgentTrainState",
    "entropy",
    "expected_loss",
    "initial_state",
    "optimizer",
    "policy_step",
    "reinforce_loss",
    "reward_histogram",
    "rewards",
    "states",
]
