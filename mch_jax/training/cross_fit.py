"""Stage 2 by the recipe that works on photos: an agent that learns from cross-fitted base models.

The codes of photos that a base model was fitted to are already perfect, and a crop hardly helps
them; what helps new photos can be seen only on photos the model has not seen. So the training set
is split into folds, a base model is fitted without each of them, and the agent learns from the
regions of the photos left out: their evidence (`evidence.state`) under a base model that never saw
them, and their true rewards, with each other as queries. The same evidence under the deployed base
model serves new photos.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8, UInt32

from mch_jax import codes, models, pairs, regions
from mch_jax.agent import evidence
from mch_jax.training import loop, parallel, train_agent, train_base
from mch_jax.training.run import Run


class Reading(NamedTuple):
    """What a base model says of the regions of photos, the whole photo first."""

    packed: UInt32[np.ndarray, "n t w"]
    logits: Float[np.ndarray, "n t q"]
    label_logits: Float[np.ndarray, "n t c"]


class Lessons(NamedTuple):
    """What the agent learns from: regions of photos that their base model had not seen.

    Attributes:
      state: evidence of each region.
      reward: of keeping it.
      calibration: of the label posterior.
    """

    state: Float[np.ndarray, "n regions s"]
    reward: Float[np.ndarray, "n regions"]
    calibration: Mapping[str, np.ndarray]


def read(
    run: Run, params: Mapping[str, Any], rows: np.ndarray, num_regions: int = len(regions.NAMES)
) -> Reading:
    """Returns what a base model says of photos' regions, of the first so many of them."""
    boxes = regions.region_boxes(run.config.encode.crop_ratio)[:num_regions]

    @jax.jit
    def call(params, batch):
        encoding = models.encode_regions(
            run.model, params, batch, boxes, run.config.model.input_size
        )
        packed = codes.pack(codes.sign(encoding.logits))
        return packed, encoding.logits, encoding.label_logits

    params = jax.device_put(run.needed_params(params))
    size, parts = run.config.encode.batch_size, []
    for batch in run.region_batches(rows, size):
        inputs = batch if run.config.base.train_conv else batch[:, :num_regions]
        result = call(params, parallel.pad_to_multiple(inputs, size))
        parts.append([np.asarray(x)[: len(batch)] for x in result])
    return Reading(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def measured_against(
    run: Run, packed: UInt32[np.ndarray, "n w"], labels: UInt8[np.ndarray, "n c"]
) -> evidence.Reference:
    """Returns photos to measure rewards against, by the config's weight of recall."""
    return evidence.reference(packed, labels, run.config.num_bits, run.config.agent.recall_weight)


def lessons(run: Run) -> Lessons:
    """Returns states and rewards of all training photos, each under a base model without it."""
    rows, labels = run.dataset.train, run.dataset.labels[run.dataset.train]
    left_out = [run.folds == fold for fold in range(run.config.agent.num_folds)]
    readings, fitted = [], []
    for fold, out in enumerate(left_out):
        params = train_base.train(run, fold)
        readings.append(read(run, params, rows[out]))
        seen = read(run, params, rows[~out], 1).packed[:, 0]
        fitted.append(measured_against(run, seen, labels[~out]))
    label_logits = np.zeros((len(rows), *readings[0].label_logits.shape[1:]), np.float32)
    for out, own in zip(left_out, readings, strict=True):
        label_logits[out] = own.label_logits
    calibration = jax.device_get(evidence.fit_posterior(label_logits, labels))
    rewards = np.zeros((len(rows), len(regions.NAMES) - 1), np.float32)
    states = np.zeros((*rewards.shape, len(evidence.NAMES)), np.float32)
    for out, own, reference in zip(left_out, readings, fitted, strict=True):
        states[out] = evidence.state(*own, calibration, reference)
        # Rewards are measured against the other photos left out, as new queries come; a photo's
        # own code is at distance 0 from itself already, so that it adds nothing to its reward.
        others = measured_against(run, own.packed[:, 0], labels[out])
        similar = pairs.similarity(run.labels[rows[out]], run.labels[rows[out]])
        rewards[out] = evidence.rewards(own.packed, similar.astype(jnp.float32), others)
    return Lessons(states, rewards, calibration)


def train(run: Run, base_params: Mapping[str, Any]) -> dict[str, Any]:
    """Trains the agent, or goes on with it.

    Returns:
      The policy's variables, and under `evidence` what the state of a new photo is made from.
    """
    learned = lessons(run)
    statistics = evidence.normalizer(learned.state)
    state = evidence.normalize(statistics, learned.state.reshape(-1, len(evidence.NAMES)))
    policy = fit(run, np.asarray(state), learned.reward.reshape(-1))
    rows = run.dataset.train
    packed = read(run, base_params, rows, 1).packed[:, 0]
    reference = measured_against(run, packed, run.dataset.labels[rows])
    return {
        **policy,
        "evidence": {
            "calibration": dict(learned.calibration),
            "statistics": statistics,
            "reference": reference._asdict(),
        },
    }


def fit(
    run: Run, state: Float[np.ndarray, "m s"], reward: Float[np.ndarray, " m"]
) -> dict[str, Any]:
    """Returns the variables of a policy that learned from normalized states and their rewards."""
    size, num_steps = run.config.agent.batch_size, run.config.agent.num_steps
    loop.check_batch("agent", size, len(state), "examples")
    tx = train_agent.optimizer(run)
    one_device = functools.partial(
        train_step, run=run, network=train_agent.policy(run, parallel.AXIS), tx=tx
    )
    num_devices = parallel.usable_devices(size)
    step = parallel.over_devices(one_device, (None, 0, None), num_devices)
    key = jax.random.fold_in(jax.random.key(run.config.seed), 2)

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for number in range(start, num_steps):
            rng = np.random.default_rng([run.config.seed, 5, number])
            chosen = rng.integers(len(state), size=size)
            yield {"state": state[chosen], "reward": reward[chosen]}

    result = loop.train(
        run,
        train_agent.STAGE,
        train_agent.init(run, state.shape[1], tx),
        num_steps,
        lambda state, batch: step(state, parallel.share_out(batch, num_devices), key),
        batches,
        train_agent.LOG_EVERY,
    )
    return train_agent.variables(result)


def train_step(
    state: train_agent.AgentState,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
    *,
    run: Run,
    network: models.Policy,
    tx: Any,
) -> tuple[train_agent.AgentState, dict[str, Array]]:
    """Returns the state after one step on a device's part of a batch, and scalars."""
    keys = parallel.example_keys(key, state.step, len(batch["reward"]))
    return train_agent.policy_step(
        state, batch["state"], batch["reward"], keys, run=run, network=network, tx=tx
    )
