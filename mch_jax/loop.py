"""The training loop of both networks: steps, log and checkpoints."""

from collections.abc import Callable, Iterator
from typing import Any

from mch_jax import logs
from mch_jax.run import Run


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
    """
    checkpoints = run.checkpoints(stage)
    state, start = checkpoints.restore(state) or (state, 0)
    run.log.rewind(stage, start)
    save_every = max(num_steps // 5, 1)
    inputs = batches(start) if start < num_steps else iter(())
    for done in logs.progress(range(start + 1, num_steps + 1), num_steps, stage, start):
        state, scalars = step(state, next(inputs))
        if done % log_every == 0 or done == num_steps:
            logs.check_finite(stage, done, scalars)
            run.log.write(stage, done, **scalars)
        if done % save_every == 0 or done == num_steps:
            checkpoints.save(done, state)
    checkpoints.close()
    return state
