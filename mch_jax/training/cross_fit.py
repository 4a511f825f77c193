"""Stage 2 by the recipe for photos: the agent learns from cross-fitted base models.

The codes of photos that a base model was fitted to are nearly perfect, and a crop's code hardly
improves them. What improves the codes of new photos can only be seen on photos that the model has
not seen. The training set is therefore split into folds, and a base model is fitted without each
fold. The agent learns from the regions of the photos left out: from their evidence
(`agent.evidence`) under the base model that has not seen them, and from their true rewards, with
each other as queries. For new photos the same evidence is computed under the deployed base model.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, UInt8, UInt32

from mch_jax import collectives, pairs, regions
from mch_jax.agent import AgentTrainState, evidence, label_head, sets
from mch_jax.training import base, encodings, features, loop, parallel, policy, threshold
from mch_jax.training.run import Run
from mch_jax.training.streams import Stream, generator

SET_TURNS = 3  # turns of a greedy choice that the agent learns from


class LeftOut(NamedTuple):
    """The photos of one fold, under the base model that was fitted without them.

    Attributes:
      out: Which training photos they are.
      encoded: Encodings of all their regions.
      fitted: The photos that the base model was fitted to, which states are measured against.
      others: The photos left out, which rewards are measured against: like new queries, the base
        model has not seen them.
      model: Digest of the base model.
      label_head: Label head on the evidence's features, fitted without the photos; None where the
        config names no such features.
    """

    out: Bool[np.ndarray, " n"]
    encoded: encodings.RegionEncodings
    fitted: evidence.Reference
    others: evidence.Reference
    model: str
    label_head: Mapping[str, np.ndarray] | None


class AgentExamples(NamedTuple):
    """What the agent learns from: regions of photos that their base model had not seen.

    Attributes:
      states: Evidence of each region. With `agent.select = "each"` there is one turn.
      rewards: Reward of keeping each region beside those that were taken in earlier turns.
      is_open: Which regions were not taken in an earlier turn.
      calibration: Calibration of the label posterior (`evidence.fit_posterior`).
      models: Digest of the base models.
    """

    states: Float[np.ndarray, "n turns regions s"]
    rewards: Float[np.ndarray, "n turns regions"]
    is_open: Bool[np.ndarray, "n turns regions"]
    calibration: Mapping[str, np.ndarray]
    models: str


def train(run: Run, base_params: Mapping[str, Any], base_run: Run | None = None) -> dict[str, Any]:
    """Trains the agent, or resumes its training.

    Args:
      run: The run.
      base_params: Parameters of the deployed base model.
      base_run: The run whose base models of the folds are used. Defaults to the same run.

    Returns:
      The policy's variables and, under `evidence`, what the states of new photos are computed from.
    """
    folds = leave_out(run, base_run)
    examples = agent_examples(run, folds)
    every = np.ones(len(run.dataset.train), bool)
    variables = learn(run, policy.STAGE, examples, every)
    if run.config.agent.calibrate:
        of_folds = []
        for number, fold in enumerate(folds):
            own = learn(run, f"{policy.STAGE}_fold{number}", examples, ~fold.out)
            own["evidence"]["reference"] = fold.fitted._asdict()
            of_folds.append(own)
        threshold.calibrate(run, [(fold.out, fold.encoded) for fold in folds], of_folds)
    rows = run.dataset.train
    packed = encodings.of_regions(run, base_params, rows, 1).packed[:, 0]
    reference = reward_reference(run, packed, run.target_labels[rows])
    variables["evidence"]["reference"] = reference._asdict()
    heads = [fold.label_head for fold in folds if fold.label_head is not None]
    if heads:
        variables["evidence"]["label_head"] = label_head.ensemble(heads)
    return variables


def learn(
    run: Run, stage: str, examples: AgentExamples, chosen: Bool[np.ndarray, " n"]
) -> dict[str, Any]:
    """Returns the variables of a policy that learned from the regions of some training photos.

    Args:
      run: The run.
      stage: Name of the checkpoints and of the scalars in the log.
      examples: States and rewards of all training photos.
      chosen: Which photos to learn from.
    """
    is_open = examples.is_open[chosen]
    states, rewards = examples.states[chosen][is_open], examples.rewards[chosen][is_open]
    statistics = evidence.normalizer(states)
    normal = np.asarray(evidence.normalize(statistics, states))
    variables = train_policy(run, stage, normal, rewards, examples.models)
    made_from = {"calibration": dict(examples.calibration), "statistics": statistics}
    return {**variables, "evidence": made_from}


def leave_out(run: Run, base_run: Run | None = None) -> list[LeftOut]:
    """Returns the training photos fold by fold, each under a base model without it.

    Args:
      run: The run.
      base_run: The run that trains the base models, or has trained them. Defaults to the same run.
    """
    rows, labels = run.dataset.train, run.target_labels[run.dataset.train]
    found = []
    for fold in range(run.config.agent.num_folds):
        out = run.folds == fold
        params = base.train(base_run or run, fold)
        encoded = encodings.of_regions(run, params, rows[out])
        head = None
        if run.evidence_features is not None:
            own = run.evidence_features
            head = label_head.fit(own.views[~out], labels[~out], run.config.seed)
            own_logits = np.asarray(label_head.logits(head, own.regions[rows[out]]))
            encoded = encoded._replace(label_logits=own_logits)
        fitted = encodings.of_regions(run, params, rows[~out], 1).packed[:, 0]
        found.append(
            LeftOut(
                out,
                encoded,
                reward_reference(run, fitted, labels[~out]),
                reward_reference(run, encoded.packed[:, 0], labels[out]),
                features.fingerprint(params),
                head,
            )
        )
    return found


def agent_examples(run: Run, folds: Sequence[LeftOut]) -> AgentExamples:
    """Returns states and rewards of all training photos, each under a base model without it."""
    labels = run.target_labels[run.dataset.train]
    label_logits = np.zeros((len(labels), *folds[0].encoded.label_logits.shape[1:]), np.float32)
    for fold in folds:
        label_logits[fold.out] = fold.encoded.label_logits
    calibration = jax.device_get(evidence.fit_posterior(label_logits, labels))
    num_turns = 1 if run.config.agent.select == "each" else SET_TURNS
    shape = (len(labels), num_turns, regions.NUM_REGIONS - 1)
    rewards, is_open = np.zeros(shape, np.float32), np.ones(shape, bool)
    states = np.zeros((*shape, len(evidence.NAMES)), np.float32)
    for fold in folds:
        packed_labels = run.train_labels[fold.out]
        # A photo's own code is at distance 0 from itself, so that it adds nothing to its reward.
        similar = pairs.similarity(packed_labels, packed_labels).astype(jnp.float32)
        taken = taken_by_turn(fold, calibration, num_turns)
        for turn, kept in enumerate(taken):
            states[fold.out, turn] = evidence.states(*fold.encoded, calibration, fold.fitted, kept)
            rewards[fold.out, turn] = evidence.rewards(
                fold.encoded.packed, similar, fold.others, kept
            )
            is_open[fold.out, turn] = ~kept[:, 1:]
    models = " ".join(fold.model for fold in folds)
    return AgentExamples(states, rewards, is_open, calibration, models)


def taken_by_turn(
    fold: LeftOut, calibration: Mapping[str, np.ndarray], num_turns: int
) -> list[Bool[np.ndarray, "b t"]]:
    """Returns the codes that photos have before each turn of a greedy choice by expected reward.

    Args:
      fold: The photos.
      calibration: Calibration of the label posterior.
      num_turns: Number of turns.
    """
    packed, label_logits = fold.encoded.packed, fold.encoded.label_logits
    before = np.zeros(packed.shape[:2], int)
    if num_turns > 1:
        similarity = evidence.similarity_probability(
            evidence.posterior(calibration, jnp.asarray(label_logits)), fold.fitted.labels
        )
        before[:, 1:] = sets.by_gain(packed, similarity, fold.fitted).turn + 1
    else:
        before[:, 1:] = 1
    return [before <= turn for turn in range(num_turns)]


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
    run: Run,
    stage: str,
    states: Float[np.ndarray, "m s"],
    rewards: Float[np.ndarray, " m"],
    models: str,
) -> dict[str, Any]:
    """Returns the variables of a policy trained on normalized states and their rewards.

    Args:
      run: The run.
      stage: Name of the checkpoints and of the scalars in the log.
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
        run.checkpoints(stage, base_models_of_the_folds=models),
        run.log,
        stage,
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
    states, reward = collectives.gather((batch["state"], batch["reward"]), parallel.AXIS)
    keys = parallel.example_keys(key, state.step, jnp.arange(len(reward)))
    return update(state, states, reward, keys)
