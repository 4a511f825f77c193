"""SIGTERM, which pre-emptible machines send before they stop: save a checkpoint, then exit.

During training the signal sets a flag, and the loop saves a checkpoint after the current step.
Everywhere else the signal ends the program at once. Files are always written whole, so that the
same command resumes from them.

Code that imports modules may catch the exception that ends the program, or print it with a
traceback. There the process ends without an exception, as it does when it is killed.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

STATUS = 128 + signal.SIGTERM  # exit status that a shell reports for the signal


class Terminated(SystemExit):
    """Raised to end the program after SIGTERM."""


_received = threading.Event()
_unraisable = sys.unraisablehook
_loops = 0


def install() -> None:
    """Installs the handler of SIGTERM. To be called in the main thread of a command."""
    _received.clear()
    signal.signal(signal.SIGTERM, _handle)
    if sys.unraisablehook is not _try_again:
        global _unraisable
        _unraisable, sys.unraisablehook = sys.unraisablehook, _try_again


def _handle(signum: int, frame: FrameType | None) -> None:
    del signum
    if _received.is_set() and _loops:
        return
    _received.set()
    if not _loops:
        if _imports(frame):
            os._exit(STATUS)
        raise Terminated(STATUS)


def _imports(frame: FrameType | None) -> bool:
    """Returns True if the code of a frame was called by an import statement."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _try_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Sends the signal again if it arrived in a destructor, where Python ignores exceptions."""
    if isinstance(unraisable.exc_value, Terminated):
        main = threading.main_thread().ident  # a signal to another thread would not wake it
        threading.Timer(0.01, signal.pthread_kill, [main, signal.SIGTERM]).start()
    else:
        _unraisable(unraisable)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Defers the signal inside the block, whose loop calls `requested` after each step."""
    global _loops
    _loops += 1
    try:
        yield
    finally:
        _loops -= 1


def requested() -> bool:
    """Returns True if the signal was received."""
    return _received.is_set()


def stop_if(condition: bool) -> None:
    """Ends the program as the signal does if the condition is true. Save everything first."""
    if condition:
        raise Terminated(STATUS)
