"""Claims of workdirs: two runs never write into the same one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mch_jax.files import locks, processes, remove_temporary


@contextlib.contextmanager
def claimed(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other runs out of a workdir, and removes what killed ones left there. Collective.

    Processes that train together share the claim, which the first of them makes.

    Args:
      workdir: Directory of the run's files; created if it does not exist.

    Raises:
      ValueError: The workdir is in use by another process, which the error names.
    """
    workdir, failure = Path(workdir), None
    with contextlib.ExitStack() as stack:
        if processes.is_writer():
            try:
                if not workdir.exists():
                    stack.callback(_remove_empty, workdir)
                workdir.mkdir(parents=True, exist_ok=True)
                remedy = "wait for its end, or use another workdir"
                lock = locks.held(workdir / ".lock", f"workdir {workdir}", remedy)
                stack.enter_context(lock)
                names = ("codes", "parts", "features", "sweep", "checkpoints")
                checkpoints = sorted(workdir.glob("checkpoints/*"))
                for directory in (workdir, *(workdir / name for name in names), *checkpoints):
                    remove_temporary(directory)
            except (ValueError, OSError) as error:
                failure = error
        processes.fail_together(failure)
        yield


def _remove_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
