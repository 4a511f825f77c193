"""What differs between operating systems: the cores of this process, locks, and folders on disk."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


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
      path: File of the lock, which is created, or a directory that exists. On Windows, which
        cannot lock a directory, its lock is the file `.lock` in it.
    """
    if fcntl is None or not path.is_dir():
        with filelock.FileLock(path / ".lock" if path.is_dir() else path):
            yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sync_directory(directory: Path) -> None:
    """Writes the names of a directory's files to disk. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
