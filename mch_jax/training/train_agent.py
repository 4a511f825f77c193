"""Stage 2: the agent, which keeps or discards the codes of an image's regions (Sec. 4.2)."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.struct import PyTreeNode
from jaxtyping import Array, Float, Key

from mch_jax import agent, codes, data, methods, regions
from mch_jax.methods import base as losses
from mch_jax.models import Policy
from mch_jax.training import loop, parallel
from mch_jax.training.run import Run

STAGE = "agent"
LOG_EVERY = 5
SCALE_DECAY = 0.9


class AgentState(PyTreeNode):
    """What changes while the agent trains."""

    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    reward_square: Any  # running mean of squared rewards


def policy(run: Run, axis_name: str | None = None) -> Policy:
    """Returns the agent's network."""
    config = run.config.agent
    return Policy(tuple(config.widths), config.dropout, axis_name)


def init(run: Run, state_width: int, tx: optax.GradientTransformation) -> AgentState:
    """Returns the state before training."""
    key = jax.random.fold_in(jax.random.key(run.config.seed), 1)
    variables = jax.jit(policy(run).init)(key, jnp.zeros((1, state_width)))
    return AgentState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        reward_square=jnp.float32(0),
    )


def optimizer(run: Run) -> optax.GradientTransformation:
    """Returns SGD with momentum and weight decay (Sec. 5.2.2), or Adam along half a cosine."""
    config = run.config.agent
    if config.optimizer == "adam":
        schedule = optax.cosine_decay_schedule(config.learning_rate, config.num_steps)
        return optax.adamw(schedule, weight_decay=config.weight_decay)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(config.learning_rate, momentum=config.momentum),
    )


def train_step(
    state: AgentState,
    batch: Mapping[str, Array],
    train_set: Mapping[str, Array],
    base_params: Any,
    key: Key[Array, ""],
    *,
    run: Run,
    network: Policy,
    tx: optax.GradientTransformation,
    table: np.ndarray,
    num_train: int,
) -> tuple[AgentState, dict[str, Array]]:
    """Returns the state after one step of the paper's recipe on a part of a batch, and scalars.

    Args:
      state: before the step.
      batch: photos or features of a region of each, and encodings of the whole photos.
      train_set: this device's part of the training set's codes and labels.
      base_params: of the base model, which does not change.
      key: of the whole training.
      run: for its config and base model.
      network: the policy.
      tx: the optimizer.
      table: base loss at each distance, for dissimilar and similar pairs.
      num_train: size of the whole training set.
    """
    config, num_bits = run.config, run.config.num_bits
    keys = parallel.example_keys(key, state.step, len(batch["labels"]))
    crop_keys, policy_keys = jax.vmap(lambda k: jax.random.split(k))(keys).T
    image = codes.Encoding(batch["features"], batch["logits"], batch["label_logits"])
    if "image" in batch:
        ratio = config.encode.crop_ratio
        boxes = jax.vmap(lambda k: regions.random_box(k, ratio))(crop_keys)
        inputs = regions.crop(batch["image"], boxes, config.model.input_size, largest=ratio)
        region = run.apply(base_params, {"image": inputs})
    else:
        region = run.apply(base_params, {"conv": batch["conv"]})
    reward = sharded_reward(image, region, batch["labels"], train_set, table, num_train, num_bits)
    features = agent.state(image, region)
    return policy_step(state, features, reward, policy_keys, run=run, network=network, tx=tx)


def policy_step(
    state: AgentState,
    features: Float[Array, "b s"],
    reward: Float[Array, " b"],
    keys: Key[Array, " b"],
    *,
    run: Run,
    network: Policy,
    tx: optax.GradientTransformation,
) -> tuple[AgentState, dict[str, Array]]:
    """Returns the state after one step of policy gradient (Eq. 7) on a device's part of a batch.

    Args:
      state: before the step.
      features: what the policy sees of each region (Eq. 3, or `evidence.state`).
      reward: of keeping it (Eq. 6).
      keys: of each region's action and dropout.
      run: for its config.
      network: the policy.
      tx: the optimizer.
    """
    config = run.config
    action_keys, dropout_keys = jax.vmap(lambda k: jax.random.split(k))(keys).T
    square = parallel.mean(jnp.mean(reward**2))
    decay = jnp.where(state.step == 0, 0.0, SCALE_DECAY)
    square = decay * state.reward_square + (1 - decay) * square
    scaled = reward * jax.lax.rsqrt(square + 1e-12) if config.agent.scale_reward else reward

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, changed = network.apply(
            variables, features, dropout_keys, train=True, mutable=["batch_stats"]
        )
        if config.agent.gradient == "sampled":
            action = jax.vmap(jax.random.categorical)(action_keys, logits)
            advantage = jnp.where(action == agent.KEEP, scaled, 0.0)
            losses = agent.reinforce_loss(logits, action, advantage)
        else:
            losses = agent.expected_loss(logits, scaled)
        entropy = agent.entropy(logits)
        loss = jnp.mean(losses - config.agent.entropy_weight * entropy)
        keep_prob = jax.nn.softmax(logits)[:, agent.KEEP]
        scalars = {
            "loss": loss,
            "reward": jnp.mean(keep_prob * reward),
            "reward_always": jnp.mean(reward),
            "reward_oracle": jnp.mean(jnp.maximum(reward, 0)),
            "reward_positive": jnp.mean(reward > 0),
            "keep_rate": jnp.mean(keep_prob >= config.encode.keep_threshold),
            "entropy": jnp.mean(entropy),
        }
        return loss, (changed["batch_stats"], scalars)

    grads, (batch_stats, scalars) = jax.grad(loss_fn, has_aux=True)(state.params)
    grads, batch_stats, scalars = parallel.mean((grads, batch_stats, scalars))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    state = AgentState(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        reward_square=square,
    )
    return state, scalars


def sharded_reward(image, region, labels, train_set, table, num_train, num_bits):
    """Returns the rewards of this device's images, against the training set on all devices.

    Each device compares the whole batch with its part of the training set; the histograms add up
    as integers, so that the rewards do not depend on the number of devices.
    """
    packed, region_packed = (codes.pack(codes.sign(e.logits)) for e in (image, region))
    whole_batch = jax.lax.all_gather(
        (packed[:, None], region_packed, labels), parallel.AXIS, tiled=True
    )
    histogram = agent.reward_histogram(
        *whole_batch, train_set["packed"], train_set["labels"], train_set["count"], num_bits
    )
    histogram = jax.lax.psum(histogram, parallel.AXIS)
    own = histogram[parallel.example_rows(len(labels))]
    return agent.reward(own, jnp.asarray(table), num_train)


def batches(run: Run, whole: codes.Encoding, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of training photos: what the base model says of the whole, and a region.

    Batch t depends on the seed and t alone.
    """
    config = run.config
    size = config.agent.batch_size
    if config.base.train_conv:
        photos = data.batches(
            run.dataset, run.dataset.train, config.dataset.image_size, size,
            seed=config.seed + 1, start_step=start_step,
        )  # fmt: skip
        inputs = ((run.train_place[batch["row"]], {"image": batch["image"]}) for batch in photos)
    else:
        inputs = view_batches(run, start_step)
    for index, batch in inputs:
        row = run.dataset.train[index]
        encoding = {name: values[index] for name, values in whole._asdict().items()}
        yield {**batch, **encoding, "labels": run.labels[row]}


def view_batches(run: Run, start_step: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields places in the training set and cached features of a random region of each."""
    views, size = run.train_views, run.config.agent.batch_size
    step = start_step
    while True:
        epoch, place = divmod(step, len(views) // size)
        order = np.random.default_rng([run.config.seed, 4, epoch]).permutation(len(views))
        index = order[place * size : (place + 1) * size]
        rng = np.random.default_rng([run.config.seed, 5, step])
        view = 2 + rng.integers(views.shape[1] - 2, size=size)
        yield index, {"conv": views[index, view]}
        step += 1


def shared_train_set(run: Run, logits: np.ndarray, num_devices: int) -> dict[str, np.ndarray]:
    """Returns the training set's codes and labels with a leading axis of devices, items last."""
    packed = np.asarray(codes.pack(codes.sign(jnp.asarray(logits))))
    labels = run.labels[run.dataset.train]
    parts = {
        "packed": packed,
        "labels": labels,
        "count": np.ones(len(packed), np.int32),
    }
    parts = {
        name: parallel.share_out(parallel.pad_for_devices(x, num_devices), num_devices)
        for name, x in parts.items()
    }
    return {name: np.moveaxis(x, -2, -1) if x.ndim > 2 else x for name, x in parts.items()}


def reward_table(run: Run) -> np.ndarray:
    """Returns the loss that rewards are made of, at each distance: the base's, or another's."""
    chosen, num_bits = run.objective, run.config.num_bits
    if run.config.agent.reward:
        chosen = methods.objective(run.config.agent.reward, num_bits)
    return np.asarray(losses.loss_table(chosen, num_bits, run.similar_fraction))


def train(run: Run, base_params: Mapping[str, Any]) -> dict[str, Any]:
    """Trains the agent by the paper's recipe, or goes on with it.

    Returns:
      The policy's variables.
    """
    config, count = run.config.agent, len(run.dataset.train)
    loop.check_batch("agent", config.batch_size, count, "examples")
    whole = run.encode_train(base_params)
    tx = optimizer(run)
    state = init(run, 2 * whole.features.shape[1] + 2 * run.config.num_bits, tx)
    num_devices = parallel.usable_devices(config.batch_size)
    train_set = shared_train_set(run, whole.logits, num_devices)
    one_device = functools.partial(
        train_step,
        run=run,
        network=policy(run, parallel.AXIS),
        tx=tx,
        table=reward_table(run),
        num_train=count,
    )
    step = parallel.over_devices(one_device, (None, 0, 0, None, None), num_devices)
    key = jax.random.fold_in(jax.random.key(run.config.seed), 2)
    frozen = parallel.replicated(run.needed_params(base_params), num_devices)

    def one_step(state, batch):
        return step(state, parallel.share_out(batch, num_devices), train_set, frozen, key)

    inputs = functools.partial(batches, run, whole)
    state = loop.train(run, STAGE, state, config.num_steps, one_step, inputs, LOG_EVERY)
    return variables(state)


def variables(state: AgentState) -> dict[str, Any]:
    """Returns the policy's variables, on the host."""
    return jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
