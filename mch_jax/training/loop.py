"""The training loop of every stage: steps, log lines and checkpoints."""

from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from mch_jax.files import Checkpoints
from mch_jax.training import logs, parallel, termination


def train(
    checkpoints: Checkpoints,
    log: logs.MetricsLog,
    stage: str,
    state: Any,
    num_steps: int,
    step: Callable[[Any, Any], tuple[Any, dict[str, Any]]],
    batches: Callable[[int], Iterator[Any]],
    *,
    log_every: int = 10,
    save_every: int | None = None,
) -> Any:
    """Trains from the newest checkpoint to the last step, and writes log lines and checkpoints.

    Args:
      checkpoints: Checkpoints of the stage. They are closed at the end.
      log: Log of the run.
      stage: Name of the stage, which precedes the names of the scalars in the log.
      state: State before the first step.
      num_steps: Number of steps of the whole training.
      step: Function (state, batch) -> (state, scalars).
      batches: Function from the number of steps taken to an iterator over the remaining batches.
      log_every: Number of steps between two lines of the log.
      save_every: Number of steps between two checkpoints. Defaults to a fifth of the training.

    Returns:
      The state after the last step.

    Raises:
      ValueError: A scalar or a number of the state is not finite. The last checkpoint is kept.
      SystemExit: SIGTERM was received. The state after the current step is saved.
    """
    state, start = checkpoints.restore(state) or (state, 0)
    log.rewind(stage, start)
    save_every = save_every or max(num_steps // 5, 1)
    inputs = batches(start) if start < num_steps else iter(())
    guard = logs.FiniteGuard(stage)
    with termination.deferred():
        for done in logs.progress(range(start + 1, num_steps + 1), num_steps, stage, start):
            state, scalars = step(state, next(inputs))
            guard.watch(done, scalars)
            is_last = done == num_steps
            writes = done % log_every == 0 or is_last
            # Processes stop together: they agree on stopping at the steps that write to the log.
            agrees = writes or parallel.num_processes() == 1
            stops = agrees and asked_to_stop()
            saves = done % save_every == 0 or is_last or stops
            if saves or writes:
                guard.check()
            if writes:
                log.write(stage, done, **scalars)
            if saves:
                checkpoints.save(done, state)
            if stops:
                logging.warning("SIGTERM: stopped after step %d of %s", done, stage)
                break
    checkpoints.close()
    termination.stop_if(asked_to_stop())
    return state


def asked_to_stop() -> bool:
    """Returns True if any process of the run received SIGTERM. Collective: all must call it."""
    return parallel.any_process(termination.requested())


def check_batch(stage: str, size: int, count: int, what: str) -> None:
    """Raises ValueError if a stage's training set has fewer examples than a batch.

    Args:
      stage: Section of the config with the batch size.
      size: Batch size.
      count: Number of training examples.
      what: What the examples are, in the plural.
    """
    if not 2 <= size <= count:
        raise ValueError(
            f"{stage}.batch_size is {size}, expected 2 to {count}, the number of training {what}"
        )
