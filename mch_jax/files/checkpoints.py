"""Orbax checkpoints with a hash of their numbers."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from mch_jax.files import made_from as records
from mch_jax.files import processes
from mch_jax.files.whole import first_line, remove_temporary


class Checkpoints:
    """The newest checkpoints of one stage of a run.

    A checkpoint is written completely or not at all. It has a hash of its numbers, because a
    storage device can change bits that no reader notices. If several processes train together, the
    first one writes and reads the files and sends restored states to the others.

    Args:
      directory: Directory of the checkpoints.
      keep: Number of checkpoints to keep.
      made_from: Digests of what the stage learns from, by name. Checkpoints record them.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 2,
        made_from: Mapping[str, str] | None = None,
    ):
        import jax
        import orbax.checkpoint as ocp

        self._args = ocp.args
        self._is_shared = jax.process_count() > 1
        self._damaged: set[int] = set()
        self._made_from = dict(made_from or {})
        self._manager: Any = None
        if not processes.is_writer():
            return
        alone = ocp.options.MultiprocessingOptions()
        if self._is_shared:  # the other processes do not call Orbax, so it must not wait for them
            Path(directory).mkdir(parents=True, exist_ok=True)
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="first"
            )
        self._manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
                multiprocessing_options=alone,
                create=not self._is_shared,
            ),
            # The handler makes it possible to read shapes without reading arrays.
            item_handlers=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        )

    def save(self, step: int, state: Any) -> None:
        """Writes a state, unless there is an undamaged checkpoint of this step.

        Args:
          step: Number of the step.
          state: Any tree of arrays.

        Raises:
          ValueError: A number of the state is not finite. Earlier checkpoints are kept.
          OSError: The disk is full. Earlier checkpoints are kept.
        """
        import jax

        state = jax.device_get(state) if self._is_shared else state
        directory = self._manager.directory if self._manager else "checkpoint"
        try:
            digest = _digest(state)
        except ValueError as error:
            raise ValueError(
                f"{directory}/{step}: {error} and is not saved; lower the learning rate"
            ) from None
        if not self._manager:
            return
        if step in self._damaged:
            self._manager.delete(step)
            self._damaged.remove(step)
        if step not in self._manager.all_steps():
            args = self._args.StandardSave(state)
            found = {"sha256": digest, "made_from": self._made_from}
            try:
                with _quiet_orbax():
                    self._manager.save(step, args=args, custom_metadata=found)
            except Exception as error:
                remove_temporary(self._manager.directory)  # it would keep a full disk full
                if "No space left" not in str(error):
                    raise
                name = os.strerror(errno.ENOSPC)
                raise OSError(errno.ENOSPC, name, str(self._manager.directory)) from error

    def restore(self, like: Any) -> tuple[Any, int] | None:
        """Returns the newest undamaged state and its step, or None if there is no checkpoint.

        A damaged checkpoint is skipped with a warning, and is replaced when its step is saved.

        Args:
          like: A state with the same shapes. The result is on the same devices.

        Raises:
          ValueError: The checkpoint has other shapes, for example another code length, or was made
            from something else, or all checkpoints are damaged.
        """
        if not self._is_shared:
            return self._restore(like)
        return processes.restored_by_first(self._restore if self._manager else None, like)

    def _restore(self, like: Any) -> tuple[Any, int] | None:
        last = None
        for step in sorted(self._manager.all_steps(), reverse=True):
            if last is not None:
                logging.warning("%s; using the checkpoint of step %d", last, step)
            state, last = self._read(step, like)
            if last is None:
                self._check_origin(step)
                return state, step
            self._damaged.add(step)
        if last is not None:
            raise ValueError(f"{last}; delete {self._manager.directory} to restart the stage")
        return None

    def _read(self, step: int, like: Any) -> tuple[Any, str | None]:
        """Returns the state of one step, and what is damaged or None."""
        name = f"checkpoint {self._manager.directory}/{step}"
        try:
            tree = self._manager.item_metadata(step).tree
            saved, expected = _shapes(tree), _shapes(like)
            state = None
            if saved == expected:
                kinds, expected_kinds = _kinds(tree), _kinds(like)
                for leaf in kinds.keys() & expected_kinds.keys():  # reading would convert them
                    if kinds[leaf] != expected_kinds[leaf]:
                        return None, f"{name} is damaged: {leaf} holds numbers of another type"
                with _quiet_orbax():
                    state = self._manager.restore(step, args=self._args.StandardRestore(like))
                digest = (self._manager.metadata(step).custom_metadata or {}).get("sha256")
                if _digest(state) != digest and digest is not None:
                    return None, f"{name} is damaged: its hash differs"
        except Exception as error:  # noqa: BLE001 - a damaged checkpoint can raise anything
            return None, f"{name} cannot be read ({first_line(error)})"
        if saved != expected:
            leaf = min(k for k in saved | expected if saved.get(k) != expected.get(k))
            raise ValueError(
                f"{name} has {leaf} of shape {saved.get(leaf)}, expected {expected.get(leaf)}; "
                "use the config it was made with, or another workdir"
            )
        return state, None

    def _check_origin(self, step: int) -> None:
        """Raises ValueError if a checkpoint was made from something else than the present inputs.

        Checkpoints of earlier versions have no record, which is logged.
        """
        name = f"checkpoint {self._manager.directory}/{step}"
        recorded = (self._manager.metadata(step).custom_metadata or {}).get("made_from")
        if not isinstance(recorded, Mapping):
            logging.warning("%s does not record what it was made from; unverified", name)
            return
        names = records.changed(recorded, self._made_from)
        if names:
            raise ValueError(
                f"{name}: the {names} changed since it was made; restore the earlier state, use "
                f"another workdir, or delete {self._manager.directory.parent} to train again"
            )

    def close(self) -> None:
        """Ends the threads of Orbax."""
        if self._manager:
            self._manager.close()


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Keeps what Orbax logs out of the log: errors in its threads, with tracebacks.

    The errors are raised as well.
    """

    def is_other(record: Any) -> bool:
        return "orbax" not in Path(record.pathname).parts

    logger = logging.get_absl_logger()
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all leaves, by their path in the tree."""
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.shape(leaf)
        for path, leaf in leaves
    }


def _kinds(state: Any) -> dict[str, str]:
    """Returns the kinds of numbers of all leaves that are arrays, by their path in the tree."""
    import jax

    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.dtype(leaf.dtype).kind
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if getattr(leaf, "dtype", None) is not None
    }


def _digest(state: Any) -> str:
    """Returns a hash of all numbers of a state.

    Raises:
      ValueError: A number is not finite. The error names its path.
    """
    import jax

    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.ascontiguousarray(leaf)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            leaf_name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{leaf_name} is not finite")
        digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()
