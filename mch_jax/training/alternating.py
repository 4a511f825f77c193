"""Base training that alternates between the network and free codes of the training set.

The mathematics is the method's (`methods.base.Alternating`). Codes at encoding come from the
network for every image, because the free codes are computed from labels.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.struct import PyTreeNode
from jaxtyping import Array, Int

from mch_jax import models, pairs
from mch_jax.methods.base import Alternating
from mch_jax.training import base_step, encodings, loop
from mch_jax.training.base_step import BaseTrainState
from mch_jax.training.run import Run
from mch_jax.training.streams import Stream, generator


class AlternatingTrainState(PyTreeNode):
    """What changes during the training.

    Attributes:
      base: State of the network's training.
      database_codes: Free codes of the training set.
    """

    base: Any
    database_codes: Any


class TurnBatch(NamedTuple):
    """A batch of a turn.

    Attributes:
      batch: What the network is trained on.
      sample: The turn's sample, as rows of the free codes.
      target: The turn's target (`methods.base.Alternating.make_target`).
      is_first: True for the first batch of the training.
      ends_turn: True for the last batch of a turn.
    """

    batch: dict[str, np.ndarray]
    sample: Int[np.ndarray, " m"]
    target: Array
    is_first: bool
    ends_turn: bool


def train(
    run: Run,
    stage: str,
    plan: Alternating,
    state: BaseTrainState,
    num_steps: int,
    positions: Int[np.ndarray, " n"],
    make_step: Callable[[Callable], Callable],
    batches: Callable[[Int[np.ndarray, " m"], int], Iterator[dict[str, np.ndarray]]],
) -> BaseTrainState:
    """Returns the state of the network after the last turn.

    A killed run resumes from the last whole turn, a run that SIGTERM ended from its last step.

    Args:
      run: The run.
      stage: Name of the checkpoints and of the scalars in the log.
      plan: What the training consists of.
      state: State of the network before the first step.
      num_steps: Number of steps. It is rounded to whole turns, of which there is at least one.
      positions: Positions of the training photos to learn from.
      make_step: Function loss_fn -> step, as `base_step.over_devices` returns it.
      batches: Function (positions to draw from, first step) -> batches.
    """
    config = run.config.base
    labels = jnp.asarray(run.train_labels[positions])
    rows = np.zeros(len(run.dataset.train), np.int32)  # row of each position in the free codes
    rows[positions] = np.arange(len(positions))
    rows = jnp.asarray(rows)
    sample_size = min(len(positions), max(plan.sample_size or len(positions), config.batch_size))
    per_turn = plan.num_epochs * (sample_size // config.batch_size)
    num_turns = max(num_steps // per_turn, 1)

    def loss_fn(params, batch, keys, progress, shared):
        encoding = models.encode(run.model, params, batch, keys if config.dropout else None)
        relaxed = run.objective.relax(encoding.logits, progress)
        similar = pairs.similarity(batch["labels"], labels)
        own_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)  # dropout has `keys`
        loss = plan.loss(
            relaxed, rows[batch["position"]], similar, shared["codes"], shared["target"], own_keys
        )
        return base_step.with_label_loss(
            loss, {"loss": loss}, params, encoding.features, batch["labels"],
            num_classes=run.model.num_classes, label_weight=config.label_weight,
        )  # fmt: skip

    @jax.jit
    def updated(codes, relaxed, sample, target):
        similar = pairs.similarity(labels[sample], labels)
        return plan.update(codes, relaxed, sample, similar, target)

    def update(params, codes, turn):
        logits = encodings.whole(run, params, positions[turn.sample]).logits
        relaxed = run.objective.relax(jnp.asarray(logits), 1.0)
        return updated(codes, relaxed, turn.sample, turn.target)

    def turn_batches(start):
        for turn in itertools.count(start // per_turn):
            rng = generator(run.config.seed, Stream.TURN_SAMPLE, turn)
            sample = np.sort(rng.permutation(len(positions))[:sample_size])
            target = plan.make_target(pairs.similarity(labels[sample], labels))
            steps = range(max(start, turn * per_turn), (turn + 1) * per_turn)
            for step, batch in zip(steps, batches(positions[sample], steps.start), strict=False):
                yield TurnBatch(batch, sample, target, step == 0, step + 1 == steps.stop)

    train_network = make_step(loss_fn)

    def step(state, turn):
        base, codes = state.base, state.database_codes
        if turn.is_first:
            # With codes of zero the network would only learn small outputs in its first turn.
            codes = update(base.params, codes, turn)
        base, scalars = train_network(base, turn.batch, {"codes": codes, "target": turn.target})
        if turn.ends_turn:
            codes = update(base.params, codes, turn)
        return AlternatingTrainState(base=base, database_codes=codes), scalars

    codes = jnp.zeros((len(positions), run.config.num_bits))
    trained = loop.train(
        run.checkpoints(stage),
        run.log,
        stage,
        AlternatingTrainState(base=state, database_codes=codes),
        num_turns * per_turn,
        step,
        turn_batches,
        log_every=per_turn,
        save_every=per_turn,
    )
    return trained.base
