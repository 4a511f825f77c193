import os
import signal
import subprocess
import sys

import pytest

from mch_jax.training import termination


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(signal.SIGTERM)
    termination.install()
    yield
    signal.signal(signal.SIGTERM, before)
    termination._received.clear()


def test_outside_of_loops_the_signal_ends_the_program_at_once():
    with pytest.raises(termination.Terminated) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.code == 143
    assert termination.requested()


def test_a_loop_ends_after_the_current_step():
    steps = []

    def loop():
        with termination.deferred():
            for step in range(5):
                termination.stop_if(termination.requested())
                if step == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                    os.kill(os.getpid(), signal.SIGTERM)  # some senders repeat it
                steps.append(step)

    with pytest.raises(SystemExit) as stop:
        loop()
    assert steps == [0, 1, 2]
    assert stop.value.code == 143


def test_a_signal_after_the_last_step_ends_the_program():
    with termination.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(termination.Terminated):
        termination.stop_if(termination.requested())


IN_A_DESTRUCTOR = """
import os, signal, time
from mch_jax.training import termination

class Closing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)  # the handler's exception ends the sleep and is then ignored

termination.install()
closing = Closing()
del closing
time.sleep(30)
"""


def test_a_signal_in_a_destructor_ends_the_program_without_a_traceback():
    result = subprocess.run(
        [sys.executable, "-c", IN_A_DESTRUCTOR], capture_output=True, text=True, timeout=20
    )
    assert result.returncode == 143
    assert result.stderr == ""


WHILE_IMPORTING = """
import os, pathlib, signal, sys
from mch_jax.training import termination

termination.install()
pathlib.Path(sys.argv[1], "half.py").write_text(
    "import os, signal\\n"
    "try:\\n"
    "    os.kill(os.getpid(), signal.SIGTERM)\\n"
    "    for _ in range(10**6): pass\\n"
    "except BaseException as error:\\n"
    "    raise ImportError('a library wraps what it catches') from error\\n"
)
sys.path.insert(0, sys.argv[1])
import half
"""


def test_a_signal_in_an_import_ends_the_program_without_a_traceback(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", WHILE_IMPORTING, tmp_path],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert result.returncode == 143
    assert result.stderr == ""
