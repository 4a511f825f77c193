"""SIGTERM, which machines that are taken away send before they go: save, then stop.

While training, the signal is noted and the loop saves after the step it is in. Everywhere else it
ends the program at once; files are written whole, so that the next start goes on from them.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

STATUS = 128 + signal.SIGTERM  # the exit status that a shell reports for the signal


class Terminated(SystemExit):
    """The program was asked to end; what was complete is kept."""


_noted = threading.Event()
_unraisable = sys.unraisablehook
_loops = 0


def install() -> None:
    """Makes SIGTERM end the program as described above; for the main thread of a command."""
    _noted.clear()
    signal.signal(signal.SIGTERM, _handle)
    if sys.unraisablehook is not _try_again:
        global _unraisable
        _unraisable, sys.unraisablehook = sys.unraisablehook, _try_again


def _handle(signum: int, frame: FrameType | None) -> None:
    del signum, frame
    if _noted.is_set() and _loops:
        return
    _noted.set()
    if not _loops:
        raise Terminated(STATUS)


def _try_again(what: "sys.UnraisableHookArgs") -> None:
    """Sends the signal anew where it came in a destructor, from which Python lets nothing out."""
    if isinstance(what.exc_value, Terminated):
        main = threading.main_thread().ident  # of another thread it would not wake this one
        threading.Timer(0.01, signal.pthread_kill, [main, signal.SIGTERM]).start()
    else:
        _unraisable(what)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Notes the signal inside the block, whose loop asks `requested` after each step."""
    global _loops
    _loops += 1
    try:
        yield
    finally:
        _loops -= 1


def requested() -> bool:
    """Returns whether the signal has come."""
    return _noted.is_set()


def stop_if(yes: bool) -> None:
    """Ends the program if it is so, as of the signal; to be called when everything is saved."""
    if yes:
        raise Terminated(STATUS)
