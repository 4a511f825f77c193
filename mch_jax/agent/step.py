"""One step of policy gradient, which both recipes of the agent share."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.struct import PyTreeNode
from jaxtyping import Array, Float, Key

from mch_jax.agent import policy_loss
from mch_jax.models import Policy

SCALE_DECAY = 0.9  # decay of the running mean of squared rewards


class AgentTrainState(PyTreeNode):
    """What changes while the policy trains.

    Attributes:
      step: Number of steps taken.
      params: Parameters of the policy.
      batch_stats: Running statistics of the policy's batch norm.
      opt_state: State of the optimizer.
      reward_square: Running mean of the squared rewards.
    """

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    reward_square: Any


def initial_state(
    network: Policy, state_width: int, tx: optax.GradientTransformation, key: Key[Array, ""]
) -> AgentTrainState:
    """Returns the state before the first step.

    Args:
      network: The policy, without an axis name.
      state_width: Number of columns of the states that the policy sees.
      tx: The optimizer.
      key: Random key of the policy's parameters.
    """
    variables = jax.jit(network.init)(key, jnp.zeros((1, state_width)))
    return AgentTrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        reward_square=jnp.float32(0),
    )


def optimizer(
    name: str, *, learning_rate: float, num_steps: int, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Returns the policy's optimizer.

    Args:
      name: `sgd`, with momentum and weight decay (Sec. 5.2.2), or `adam`, with decoupled weight
        decay and a learning rate that falls along half a cosine.
      learning_rate: Learning rate of the first step.
      num_steps: Number of steps of the training.
      momentum: Momentum of SGD.
      weight_decay: Weight decay.
    """
    if name == "adam":
        schedule = optax.cosine_decay_schedule(learning_rate, num_steps)
        return optax.adamw(schedule, weight_decay=weight_decay)
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum)
    )


def policy_step(
    state: AgentTrainState,
    features: Float[Array, "b s"],
    reward: Float[Array, " b"],
    keys: Key[Array, " b"],
    *,
    network: Policy,
    tx: optax.GradientTransformation,
    gradient: str = "sampled",
    entropy_weight: float = 0.0,
    scale_reward: bool = True,
    keep_threshold: float = 0.5,
) -> tuple[AgentTrainState, dict[str, Array]]:
    """Returns the state after one step on a batch, and scalars to log.

    The batch is whole. With several devices each of them takes the same step: the statistics of
    batch norm would otherwise have to be summed for each layer, forward and backward, and the
    gradient is larger than the batch.

    Args:
      state: State before the step.
      features: What the policy sees of each region: `states` (Eq. 3) or normalized evidence.
      reward: Reward of keeping each region (Eq. 6).
      keys: Random key of each region's action and dropout.
      network: The policy.
      tx: The optimizer.
      gradient: `sampled` for REINFORCE (Eq. 7), `exact` for its expectation over both actions.
      entropy_weight: Weight of the policy's entropy, which is maximised.
      scale_reward: Whether rewards are divided by their running root mean square.
      keep_threshold: Keep probability xi from which a region counts as kept in `keep_rate`.
    """
    action_keys, dropout_keys = jax.vmap(lambda k: jax.random.split(k))(keys).T
    decay = jnp.where(state.step == 0, 0.0, SCALE_DECAY)
    square = decay * state.reward_square + (1 - decay) * jnp.mean(reward**2)
    scaled = reward * jax.lax.rsqrt(square + 1e-12) if scale_reward else reward

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = network.apply(
            variables, features, dropout_keys, train=True, mutable=["batch_stats"]
        )
        if gradient == "sampled":
            action = jax.vmap(jax.random.categorical)(action_keys, logits)
            advantage = jnp.where(action == policy_loss.KEEP, scaled, 0.0)
            losses = policy_loss.reinforce_loss(logits, action, advantage)
        else:
            losses = policy_loss.expected_loss(logits, scaled)
        entropy = policy_loss.entropy(logits)
        loss = jnp.mean(losses - entropy_weight * entropy)
        keep_prob = jax.nn.softmax(logits)[:, policy_loss.KEEP]
        scalars = {
            "loss": loss,
            "reward": jnp.mean(keep_prob * reward),
            "reward_always": jnp.mean(reward),
            "reward_oracle": jnp.mean(jnp.maximum(reward, 0)),
            "reward_positive": jnp.mean(reward > 0),
            "keep_rate": jnp.mean(keep_prob >= keep_threshold),
            "entropy": jnp.mean(entropy),
        }
        return loss, (changed["batch_stats"], scalars)

    grads, (batch_stats, scalars) = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    state = AgentTrainState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        reward_square=square,
    )
    return state, scalars
