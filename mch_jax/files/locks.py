"""Locks on files and directories, which the system releases when their process ends.

They work on Linux, macOS and Windows. On a file system without locks, such as some network file
systems, a warning says so and nothing is locked.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from absl import logging

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_FAR = 2**40  # Windows locks bytes, and other processes have to read those of the holder's name


def _lock(handle: int, path: Path, wait: bool) -> bool:
    """Locks an open file. Returns False if another process has locked it and `wait` is False."""
    if not fcntl:
        return _lock_on_windows(handle, path, wait)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        _warn(path, error.strerror)
    return True


def _lock_on_windows(handle: int, path: Path, wait: bool) -> bool:
    try:
        import msvcrt
    except ImportError:
        _warn(path, "this system has no locks")
        return True
    mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK  # pyright: ignore[reportAttributeAccessIssue]
    while True:
        os.lseek(handle, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(handle, mode, 1)  # pyright: ignore[reportAttributeAccessIssue]
            return True
        except OSError:  # LK_LOCK gives up after ten seconds
            if not wait:
                return False


def _warn(path: Path, reason: str | None) -> None:
    logging.warning("%s: %s; do not start a second process there", path, reason)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Waits until no other process is inside such a block for the same path.

    Args:
      path: A directory that exists, or a file, which is created if it does not exist and is kept.
    """
    path = Path(path)
    if path.is_dir() and not fcntl:  # Windows cannot open a directory
        path = path / ".lock"
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    handle = os.open(path, flags, 0o666)
    try:
        _lock(handle, path, wait=True)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def held(path: str | os.PathLike[str], name: str, remedy: str) -> Iterator[None]:
    """Keeps other processes out of a block, or raises an error that says who is inside.

    The file has the process and host of its holder and is removed at the end. That of a process
    that was killed does not block.

    Args:
      path: The file that stands for the lock. Its directory has to exist.
      name: What is locked, for the error message.
      remedy: What the user can do, for the error message.

    Raises:
      ValueError: Another process is inside such a block.
    """
    path = Path(path)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(handle, path, wait=False):
                raise ValueError(f"{name} is in use by {_holder(path)}; {remedy}")
            if _is_at(handle, path):
                break
            # The last holder removed the file after it was opened here.
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    try:
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        if fcntl:  # removed while it is locked, so that nobody else's file is removed
            path.unlink(missing_ok=True)
        os.close(handle)
        if not fcntl:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_at(handle: int, path: Path) -> bool:
    """Returns True if an open file is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """Returns the process and host that a lock file names."""
    try:
        return path.read_text("utf-8", "replace").strip() or "another process"
    except OSError:
        return "another process"
