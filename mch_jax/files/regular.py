"""Regular files: reading that waits for no pipe, reads no device and fills no memory."""

import os
import stat
from typing import IO


class Refused(ValueError):
    """The reason why a file is refused, without the file's name."""


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a file for reading, without waiting for the other end of a pipe.

    Raises:
      OSError: The file does not open.
      ValueError: It is a pipe, a device or a folder.
    """
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # on Unix, on Windows
    descriptor = os.open(path, os.O_RDONLY | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused("it is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: str | os.PathLike[str], most: int) -> bytes:
    """Returns the content of a regular file of at most `most` bytes.

    Raises:
      OSError: The file does not open.
      ValueError: It is not a regular file, or is longer.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise Refused(f"it has {size:,} bytes, expected at most {most:,}")
        return stream.read(size)
