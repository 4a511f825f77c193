"""Stage 2 by the recipe for photos: the agent learns from cross-fitted base models.

The codes of photos that a base model was fitted to are nearly perfect, and a crop's code hardly
improves them. What improves the codes of new photos can only be seen on photos that the model has
not seen. The training set is therefore split into folds, and a base model is fitted without each
fold. The agent learns from the regions of the photos left out: from their evidence
(`agent.evidence`) under the base model that has not seen them, and from their true rewards, with
each other as queries. For new photos the same evidence is computed under the deployed base model.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8, UInt32

from mch_jax import pairs, regions
from mch_jax.agent import AgentTrainState, evidence
from mch_jax.training import base, encodings, features, loop, parallel, policy
from mch_jax.training.run import Run
from mch_jax.training.streams import Stream, generator


class AgentExamples(NamedTuple):
    """What the agent learns from: regions of photos that their base model had not seen.

    Attributes:
      states: Evidence of each region.
      rewards: Reward of keeping each region.
      calibration: Calibration of the label posterior (`evidence.fit_posterior`).
      models: Digest of the base models.
    """

    states: Float[np.ndarray, "n regions s"]
    rewards: Float[np.ndarray, "n regions"]
    calibration: Mapping[str, np.ndarray]
    models: str


def train(run: Run, base_params: Mapping[str, Any]) -> dict[str, Any]:
    """Trains the agent, or resumes its training.

    Args:
      run: The run.
      base_params: Parameters of the deployed base model.

    Returns:
      The policy's variables and, under `evidence`, what the states of new photos are computed from.
    """
    examples = agent_examples(run)
    statistics = evidence.normalizer(examples.states)
    flat = examples.states.reshape(-1, len(evidence.NAMES))
    states = np.asarray(evidence.normalize(statistics, flat))
    variables = train_policy(run, states, examples.rewards.reshape(-1), examples.models)
    rows = run.dataset.train
    packed = encodings.of_regions(run, base_params, rows, 1).packed[:, 0]
    reference = reward_reference(run, packed, run.dataset.labels[rows])
    return {
        **variables,
        "evidence": {
            "calibration": dict(examples.calibration),
            "statistics": statistics,
            "reference": reference._asdict(),
        },
    }


def agent_examples(run: Run) -> AgentExamples:
    """Returns states and rewards of all training photos, each under a base model without it."""
    rows, labels = run.dataset.train, run.dataset.labels[run.dataset.train]
    left_out = [run.folds == fold for fold in range(run.config.agent.num_folds)]
    encoded, references, models = [], [], []
    for fold, out in enumerate(left_out):
        params = base.train(run, fold)
        models.append(features.fingerprint(params))
        encoded.append(encodings.of_regions(run, params, rows[out]))
        fitted = encodings.of_regions(run, params, rows[~out], 1).packed[:, 0]
        references.append(reward_reference(run, fitted, labels[~out]))
    label_logits = np.zeros((len(rows), *encoded[0].label_logits.shape[1:]), np.float32)
    for out, own in zip(left_out, encoded, strict=True):
        label_logits[out] = own.label_logits
    calibration = jax.device_get(evidence.fit_posterior(label_logits, labels))
    rewards = np.zeros((len(rows), regions.NUM_REGIONS - 1), np.float32)
    states = np.zeros((*rewards.shape, len(evidence.NAMES)), np.float32)
    for out, own, reference in zip(left_out, encoded, references, strict=True):
        states[out] = evidence.states(*own, calibration, reference)
        # Rewards are measured against the other photos left out, which are like new queries. A
        # photo's own code is at distance 0 from itself, so that it adds nothing to its reward.
        others = reward_reference(run, own.packed[:, 0], labels[out])
        packed_labels = run.train_labels[out]
        similar = pairs.similarity(packed_labels, packed_labels)
        rewards[out] = evidence.rewards(own.packed, similar.astype(jnp.float32), others)
    return AgentExamples(states, rewards, calibration, " ".join(models))


def reward_reference(
    run: Run, packed: UInt32[np.ndarray, "n w"], labels: UInt8[np.ndarray, "n c"]
) -> evidence.Reference:
    """Returns photos to measure rewards against, with the config's weight of recall.

    Args:
      run: The run.
      packed: Packed code of each photo.
      labels: Multi-hot labels of each photo.
    """
    return evidence.reference(packed, labels, run.config.num_bits, run.config.agent.recall_weight)


def train_policy(
    run: Run, states: Float[np.ndarray, "m s"], rewards: Float[np.ndarray, " m"], models: str
) -> dict[str, Any]:
    """Returns the variables of a policy trained on normalized states and their rewards.

    Args:
      run: The run.
      states: Normalized states of regions.
      rewards: Reward of keeping each region.
      models: Digest of the base models that the states come from.
    """
    config = run.config
    size, num_steps = config.agent.batch_size, config.agent.num_steps
    loop.check_batch("agent", size, len(states), "examples")
    tx = policy.optimizer(config)
    one_device = functools.partial(train_step, update=policy.update(config, tx))
    num_devices = parallel.usable_devices(size)
    step = parallel.over_devices(one_device, (None, 0, None), num_devices)
    key = policy.step_key(config)

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for number in range(start, num_steps):
            rng = generator(config.seed, Stream.CROSS_FIT_BATCH, number)
            chosen = rng.integers(len(states), size=size)
            yield {"state": states[chosen], "reward": rewards[chosen]}

    result = loop.train(
        run.checkpoints(policy.STAGE, base_models_of_the_folds=models),
        run.log,
        policy.STAGE,
        policy.initial_state(config, states.shape[1], tx),
        num_steps,
        lambda state, batch: step(state, parallel.split_batch(batch, num_devices), key),
        batches,
        log_every=policy.LOG_EVERY,
    )
    return policy.variables(result)


def train_step(
    state: AgentTrainState,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
    *,
    update: Any,
) -> tuple[AgentTrainState, dict[str, Array]]:
    """Returns the state after one step on a device's part of a batch, and scalars to log.

    Args:
      state: State before the step.
      batch: Normalized states (`state`) and rewards (`reward`) of regions.
      key: Random key of the whole training.
      update: `agent.policy_step` with its settings.
    """
    keys = parallel.example_keys(key, state.step, len(batch["reward"]))
    return update(state, batch["state"], batch["reward"], keys)
