"""The process that writes files, among several that train together.

The first process writes all files and sends the checkpoint that it restores to the others. Without
`set_writer` a process writes its own files.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

_is_writer = True


def set_writer(is_writer: bool) -> None:
    """Sets whether this process writes files."""
    global _is_writer
    _is_writer = is_writer


def is_writer() -> bool:
    """Returns whether this process writes files."""
    return _is_writer


def fail_together(failure: Exception | None) -> None:
    """Raises an error in every process if the first process failed. Collective.

    Args:
      failure: In the first process, its error or None. It is ignored in the other processes.

    Raises:
      ValueError: The first process failed. It raises its own error.
    """
    import jax

    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import broadcast_one_to_all

        if not broadcast_one_to_all(np.int32(failure is not None)):
            return
        failure = failure or ValueError("the first process cannot start; see its error message")
    if failure is not None:
        raise failure


def restored_by_first(
    restore: Callable[[Any], tuple[Any, int] | None] | None, like: Any
) -> tuple[Any, int] | None:
    """Returns in every process the state that the first process restores. Collective.

    Args:
      restore: In the first process, a function that returns the newest state and its step, or None
        if there is none. In the other processes, None.
      like: A state with the same shapes and dtypes.

    Returns:
      The state and its step, or None if there is none.

    Raises:
      ValueError: The first process could not restore its state.
    """
    import jax
    from jax.experimental.multihost_utils import broadcast_one_to_all

    like = jax.device_get(like)
    found, failure = None, None
    # The step is sent first: -1 if there is no state, -2 if the first process failed.
    if restore:
        try:
            found = restore(like)
        except ValueError as error:
            failure = error
    state, step = found or (like, -1)
    step = int(broadcast_one_to_all(np.int32(-2 if failure else step)))
    if step == -2:
        raise failure or ValueError("the first process cannot resume; see its error message")
    if step == -1:
        return None
    return jax.device_get(broadcast_one_to_all(jax.device_get(state))), step
