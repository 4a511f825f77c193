"""What differs between operating systems: the cores of this process, locks, and folders on disk."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock


def cores() -> list[int]:
    """Returns the numbers of the cores that this process may use, ascending.

    Only Linux says which cores a process may use; elsewhere they are all cores of the machine.
    """
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps out other processes and threads that lock the same file; waits for them first.

    The operating system frees the lock when its process ends, also when it is killed.

    Args:
      path: File of the lock, which is created. Nothing else is kept in it.
    """
    with filelock.FileLock(path):
        yield


def sync_directory(directory: Path) -> None:
    """Writes the names of a directory's files to disk. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
