"""The training loop of both networks: steps, log and checkpoints."""

from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from mch_jax.training import logs, parallel, termination
from mch_jax.training.run import Run


def train(
    run: Run,
    stage: str,
    state: Any,
    num_steps: int,
    step: Callable[[Any, Any], tuple[Any, dict[str, Any]]],
    batches: Callable[[int], Iterator[Any]],
    log_every: int = 10,
) -> Any:
    """Runs steps from the newest checkpoint to the end, logging and saving on the way.

    Args:
      run: whose workdir to write into.
      stage: names the checkpoints and the scalars.
      state: before the first step.
      num_steps: of the whole training.
      step: (state, batch) -> state and scalars.
      batches: start step -> iterator over batches from there on.
      log_every: steps between two lines of the log.

    Returns:
      The state after the last step.

    Raises:
      ValueError: a scalar or a number of the state is not finite; the last checkpoint stays.
      SystemExit: SIGTERM came; the state after the step it came in is saved.
    """
    checkpoints = run.checkpoints(stage)
    state, start = checkpoints.restore(state) or (state, 0)
    run.log.rewind(stage, start)
    save_every = max(num_steps // 5, 1)
    inputs = batches(start) if start < num_steps else iter(())
    guard = logs.FiniteGuard(stage)
    with termination.deferred():
        for done in logs.progress(range(start + 1, num_steps + 1), num_steps, stage, start):
            state, scalars = step(state, next(inputs))
            guard.watch(done, scalars)
            is_last = done == num_steps
            writes = done % log_every == 0 or is_last
            # Processes stop together: they agree on it where a line of the log is due.
            agrees = writes or parallel.num_processes() == 1
            stops = agrees and asked_to_stop()
            saves = done % save_every == 0 or is_last or stops
            if saves or writes:
                guard.check()
            if writes:
                run.log.write(stage, done, **scalars)
            if saves:
                checkpoints.save(done, state)
            if stops:
                logging.warning("SIGTERM: stopped after step %d of %s", done, stage)
                break
    checkpoints.close()
    termination.stop_if(asked_to_stop())
    return state


def asked_to_stop() -> bool:
    """Returns whether SIGTERM came to any process of the run; every process has to ask."""
    return parallel.any_process(termination.requested())


def check_batch(stage: str, size: int, count: int, what: str) -> None:
    """Raises ValueError where a stage's training set does not fill a batch."""
    if not 2 <= size <= count:
        raise ValueError(
            f"{stage}.batch_size is {size}, expected 2 to {count}, the number of training {what}"
        )
