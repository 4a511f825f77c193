"""Locks between processes, which the operating system releases when their process ends.

A lock is a file, which is removed at the end unless the process is killed. On a system without
locks of files (Linux, macOS and Windows have them), the file itself is the lock, as a warning of
filelock says: there, the file that a killed process leaves has to be deleted by hand.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock
from absl import logging

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Waits until no other process or thread is inside such a block for the same path.

    Args:
      path: The file of the lock, or a directory that exists, whose lock is the file `.lock` in it.
    """
    path = Path(path)
    with _taken(path / ".lock" if path.is_dir() else path, timeout=-1.0):
        yield


@contextlib.contextmanager
def held(path: str | os.PathLike[str], name: str, remedy: str) -> Iterator[None]:
    """Keeps other processes out of a block, or raises an error that says who is inside.

    A second file, whose name ends with `-holder`, has the process and the host of the holder.

    Args:
      path: The file of the lock. Its directory has to exist.
      name: What is locked, for the error message.
      remedy: What the user can do, for the error message.

    Raises:
      ValueError: Another process is inside such a block.
    """
    path = Path(path)
    holder = path.with_name(f"{path.name}-holder")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_taken(path, timeout=0.0))
        except filelock.Timeout:
            raise ValueError(f"{name} is in use by {_read(holder)}; {remedy}") from None
        stack.callback(_unlink, holder)
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield


@contextlib.contextmanager
def _taken(path: Path, timeout: float) -> Iterator[None]:
    """Takes a lock and removes its file at the end.

    On file systems without locks, such as some network file systems, nothing is locked, and a
    warning says so.
    """
    lock = filelock.FileLock(path, timeout, poll_interval=0.01)
    try:
        lock.acquire()
    except OSError as error:
        if isinstance(error, filelock.Timeout) or error.errno not in _WITHOUT_LOCKS:
            raise
        logging.warning("%s: %s; do not start a second process there", path.parent, error.strerror)
        yield
        return
    try:
        yield
    finally:
        # Removed while it is locked: a process that opened it before then locks a file without a
        # name, which filelock notices. Windows removes no open file.
        if os.name != "nt":
            _unlink(path)
        lock.release()
        if os.name == "nt":
            _unlink(path)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _read(holder: Path) -> str:
    """Returns the process and host that a lock's second file names."""
    try:
        return holder.read_text("utf-8", "replace").strip() or "another process"
    except OSError:
        return "another process"
