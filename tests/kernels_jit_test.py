import os
import shutil
import subprocess
import sys
from pathlib import Path

from mch_jax.kernels import jit

CALLER = """
from kernels.callee import number
from kernels.jit import kernel

@kernel
def twice():
    return 2 * number()
"""


def test_a_change_in_another_module_compiles_the_caller_again(tmp_path):
    package = tmp_path / "kernels"
    package.mkdir()
    shutil.copy(Path(jit.__file__), package)
    (package / "__init__.py").touch()
    (package / "caller.py").write_text(CALLER)
    show = "from kernels.caller import twice; print(twice(), sum(twice.stats.cache_hits.values()))"
    results = []
    for number in (1, 1, 7):
        callee = f"from kernels.jit import leaf\n\n@leaf\ndef number():\n    return {number}\n"
        (package / "callee.py").write_text(callee)
        command = [sys.executable, "-B", "-c", show]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        results.append(done.stdout.split())
    assert results == [["2", "0"], ["2", "1"], ["14", "0"]]


def test_kernels_run_where_nothing_can_be_written():
    # Numba then finds no place for its files: neither the package's folder nor the user's home.
    nowhere = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": ""}
    show = (
        "import numpy as np; from mch_jax.kernels import bits; "
        "print(bits.hamming(np.uint64(7), np.uint64(0)))"
    )
    command = [sys.executable, "-c", show]
    done = subprocess.run(
        command, env=os.environ | nowhere, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["3"]
    assert done.stderr.count("set NUMBA_CACHE_DIR") == 1
