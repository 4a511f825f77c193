"""Stage 2 by the paper's recipe: the agent learns from the base model's training photos (Sec. 4.2).

In each step the agent sees one random region of each photo of a batch. The reward is the change of
the base loss against the whole training set (Eq. 6).
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from mch_jax import agent, codes, collectives, methods, models, regions
from mch_jax.agent import state as agent_state
from mch_jax.methods import base as losses
from mch_jax.methods.base import Objective
from mch_jax.models import AlexNet
from mch_jax.training import encodings, features, inputs, loop, parallel, policy
from mch_jax.training.run import Run


def train(run: Run, base_params: Mapping[str, Any]) -> dict[str, Any]:
    """Trains the agent, or resumes its training.

    Args:
      run: The run.
      base_params: Parameters of the base model.

    Returns:
      The policy's variables.
    """
    config, count = run.config, len(run.dataset.train)
    size = config.agent.batch_size
    loop.check_batch("agent", size, count, "examples")
    whole = encodings.whole(run, base_params)
    num_devices = parallel.usable_devices(size)
    train_set = shared_train_set(whole.logits, run.train_labels, num_devices)
    tx = policy.optimizer(config)
    one_device = functools.partial(
        train_step,
        model=run.model,
        crop_ratio=config.encode.crop_ratio,
        input_size=config.model.input_size,
        loss_table=loss_table(reward_objective(run), config.num_bits, run.similar_fraction),
        num_train=count,
        update=policy.update(config, tx),
    )
    step = parallel.over_devices(one_device, (None, 0, 0, None, None), num_devices)
    key = policy.step_key(config)
    frozen = parallel.replicated(run.needed_params(base_params), num_devices)

    def one_step(state, batch):
        return step(state, parallel.split_batch(batch, num_devices), train_set, frozen, key)

    width = agent_state.width(whole.features.shape[1], config.num_bits)
    state = loop.train(
        run.checkpoints(policy.STAGE, base_model=features.fingerprint(base_params)),
        run.log,
        policy.STAGE,
        policy.initial_state(config, width, tx),
        config.agent.num_steps,
        one_step,
        functools.partial(batches, run, whole),
        log_every=policy.LOG_EVERY,
    )
    return policy.variables(state)


def batches(run: Run, whole: codes.Encoding, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields endless batches of training photos, with packed labels and the base model's encodings.

    Args:
      run: The run.
      whole: Encodings of the whole training photos.
      start_step: First step.
    """
    config = run.config
    size = config.agent.batch_size
    if config.base.train_conv:
        positions = np.arange(len(run.dataset.train))
        drawn = inputs.photos(
            run.dataset, positions, start_step,
            image_size=config.dataset.image_size, batch_size=size, seed=config.seed + 1,
        )  # fmt: skip
    else:
        drawn = inputs.region_views(run.train_views, start_step, batch_size=size, seed=config.seed)
    for position, batch in drawn:
        encoding = {name: values[position] for name, values in whole._asdict().items()}
        yield {**batch, **encoding, "labels": run.train_labels[position]}


def train_step(
    state: agent.AgentTrainState,
    batch: Mapping[str, Array],
    train_set: Mapping[str, Array],
    base_params: Mapping[str, Any],
    key: Key[Array, ""],
    *,
    model: AlexNet,
    crop_ratio: float,
    input_size: int,
    loss_table: Float[np.ndarray, "2 distances"],
    num_train: int,
    update: Callable,
) -> tuple[agent.AgentTrainState, dict[str, Array]]:
    """Returns the state after one step on a device's part of a batch, and scalars to log.

    Args:
      state: State before the step.
      batch: Photos (`image`) or features of a region of each (`conv`), the encodings of the whole
        photos, and packed `labels`.
      train_set: This device's part of `shared_train_set`.
      base_params: Parameters of the base model, which do not change.
      key: Random key of the whole training.
      model: Network of the base model.
      crop_ratio: Side ratio of the regions that are cropped from photos.
      input_size: Height and width of the network's input.
      loss_table: Base loss at each distance, for dissimilar and for similar pairs.
      num_train: Number of photos in the whole training set.
      update: `agent.policy_step` with its settings.
    """
    rows = parallel.example_rows(len(batch["labels"]))
    keys = parallel.example_keys(key, state.step, jnp.arange(parallel.whole_size(len(rows))))
    crop_keys, policy_keys = jax.vmap(lambda k: jax.random.split(k))(keys).T
    image = codes.Encoding(batch["features"], batch["logits"], batch["label_logits"])
    region_inputs = {"conv": batch["conv"]} if "conv" in batch else None
    if region_inputs is None:
        boxes = jax.vmap(lambda k: regions.random_box(k, crop_ratio))(crop_keys[rows])
        crops = regions.crop(batch["image"], boxes, input_size, largest=crop_ratio)
        region_inputs = {"image": crops}
    region = models.encode(model, base_params, region_inputs)
    packed, region_packed = (codes.pack(codes.sign(e.logits)) for e in (image, region))
    states, packed, region_packed, labels = collectives.gather(
        (agent.states(image, region), packed, region_packed, batch["labels"]), parallel.AXIS
    )
    reward = summed_rewards(
        packed, region_packed, labels, train_set, loss_table, num_train, model.num_bits
    )
    return update(state, states, reward, policy_keys)


def summed_rewards(
    packed: UInt32[Array, "b w"],
    region_packed: UInt32[Array, "b w"],
    labels: UInt32[Array, "b lw"],
    train_set: Mapping[str, Array],
    loss_table: Float[np.ndarray, "2 distances"],
    num_train: int,
    num_bits: int,
) -> Float[Array, " b"]:
    """Returns the rewards of the whole batch, against the training set on all devices.

    Each device compares the whole batch with its part of the training set. The histograms are
    summed as integers, so that rewards do not depend on the number of devices.

    Args:
      packed: Packed codes of the whole images of the batch.
      region_packed: Packed code of one region of each.
      labels: Packed labels of the images.
      train_set: This device's part of `shared_train_set`.
      loss_table: Base loss at each distance, for dissimilar and for similar pairs.
      num_train: Number of images in the whole training set.
      num_bits: Code length q.
    """
    histogram = agent.reward_histogram(
        packed[:, None], region_packed, labels,
        train_set["packed"], train_set["labels"], train_set["count"], num_bits,
    )  # fmt: skip
    histogram = jax.lax.psum(histogram, parallel.AXIS)
    return agent.rewards(histogram, jnp.asarray(loss_table), num_train)


def shared_train_set(
    logits: Float[np.ndarray, "n q"], labels: UInt32[np.ndarray, "n lw"], num_devices: int
) -> dict[str, np.ndarray]:
    """Returns the training set's codes, labels and counts, split over devices, items last.

    Args:
      logits: Logits of the whole training photos.
      labels: Packed labels of the training photos.
      num_devices: Number of devices that this process uses.
    """
    packed = np.asarray(codes.pack(codes.sign(jnp.asarray(logits))))
    arrays = {"packed": packed, "labels": labels, "count": np.ones(len(packed), np.int32)}
    split = {
        name: parallel.split_batch(parallel.pad_for_devices(x, num_devices), num_devices)
        for name, x in arrays.items()
    }
    return {name: np.moveaxis(x, -2, -1) if x.ndim > 2 else x for name, x in split.items()}


def reward_objective(run: Run) -> Objective:
    """Returns the objective whose loss makes the rewards: the base model's, or agent.reward's."""
    if run.config.agent.reward:
        return methods.objective(run.config.agent.reward, run.config.num_bits)
    return run.objective


def loss_table(
    objective: Objective, num_bits: int, similar_fraction: float
) -> Float[np.ndarray, "2 distances"]:
    """Returns `methods.base.loss_table` on the host."""
    return np.asarray(losses.loss_table(objective, num_bits, similar_fraction))
