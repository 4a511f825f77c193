"""The training of the policy as the config describes it, for both recipes of the agent."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from mch_jax import agent
from mch_jax.models import Policy

STAGE = "agent"
LOG_EVERY = 5


def network(config: Any) -> Policy:
    """Returns the policy."""
    return Policy(tuple(config.agent.widths), config.agent.dropout)


def optimizer(config: Any) -> optax.GradientTransformation:
    """Returns the policy's optimizer."""
    return agent.optimizer(
        config.agent.optimizer,
        learning_rate=config.agent.learning_rate,
        num_steps=config.agent.num_steps,
        momentum=config.agent.momentum,
        weight_decay=config.agent.weight_decay,
    )


def initial_state(
    config: Any, state_width: int, tx: optax.GradientTransformation
) -> agent.AgentTrainState:
    """Returns the state before the first step.

    Args:
      config: Config of the run.
      state_width: Number of columns of the states that the policy sees.
      tx: The optimizer.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    return agent.initial_state(network(config), state_width, tx, key)


def step_key(config: Any) -> jax.Array:
    """Returns the random key of the training."""
    return jax.random.fold_in(jax.random.key(config.seed), 2)


def update(config: Any, tx: optax.GradientTransformation) -> Callable:
    """Returns `agent.policy_step` with the config's settings.

    It is a function (state, features, reward, keys) -> (state, scalars).
    """
    return functools.partial(
        agent.policy_step,
        network=network(config),
        tx=tx,
        gradient=config.agent.gradient,
        entropy_weight=config.agent.entropy_weight,
        scale_reward=config.agent.scale_reward,
        keep_threshold=config.encode.keep_threshold,
    )


def variables(state: agent.AgentTrainState) -> dict[str, Any]:
    """Returns the policy's parameters and batch statistics, on the host."""
    return jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
