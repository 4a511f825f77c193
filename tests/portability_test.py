"""The package without what only some operating systems have, and the one module that knows them."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from mch_jax.files import codes_file
from mch_jax.files.codes_file import CodeFile

ROOT = pathlib.Path(__file__).parents[1]

# A Python that lacks what Windows or macOS lack. With neither fcntl nor msvcrt, filelock warns that
# its locks are files only.
ELSEWHERE = """
import os, sys, warnings
sys.modules["fcntl"] = None
for name in ("sched_getaffinity", "sched_setaffinity", "pread"):
    if hasattr(os, name):
        delattr(os, name)
warnings.filterwarnings("ignore", message=".*soft file lock.*")
"""

INDEX = """
import numpy as np
from mch_jax.index import BucketIndex

codes = np.arange(50, dtype=np.uint8)[:, None]
index = BucketIndex.build(codes, np.arange(50), num_bits=8)
index.save("index")
index.add(codes[:1], np.array([50]))
index.save("index")
found = BucketIndex.open("index").search(codes[:1], 2)
print(found.item[0].tolist(), found.distance[0].tolist())
"""

SEARCH = """
from mch_jax import search
search.main(["--run=run", "--codes=run/codes/database.npz", "--k=1"])
"""

GRID = """
import pathlib, sys
from mch_jax import grid, machine

assert machine.cores() == list(range(os.cpu_count()))
grid.pinned = lambda cores: []  # macOS and Windows have no taskset
grid.run_command = lambda *_: [sys.executable, "-c", "raise SystemExit('it ran')"]
print(*grid.run_grid(grid.cells("scenes", ["lsh"], [16], [0]), pathlib.Path(), [], 1, []))
"""


@pytest.mark.parametrize(
    ("use", "printed"),
    [(INDEX, "[0, 50] [0, 0]"), (SEARCH, "b.jpg"), (GRID, "exit status 1: it ran")],
    ids=["index", "search", "grid"],
)
def test_without_the_calls_of_one_system(use, printed, tmp_path):
    codes = np.array([[0], [255]], np.uint8)
    item, ids = np.arange(2), np.array(["a.jpg", "b.jpg"])
    box = np.tile(np.array([0, 0, 9, 9], np.int32), (2, 1))
    labels = np.eye(2, dtype=np.uint8)
    file = CodeFile(codes, item, ids, np.ones(2, np.float32), box, labels, 8)
    (tmp_path / "run" / "codes").mkdir(parents=True)
    codes_file.save(tmp_path / "run" / "codes" / "database.npz", file)
    result = subprocess.run(
        [sys.executable, "-c", ELSEWHERE + use],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert printed in result.stdout


def test_one_module_knows_the_operating_systems():
    known = re.compile(r"\b(fcntl|sched_getaffinity|msvcrt)\b")
    paths = [*(ROOT / "mch_jax").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]
    found = {path.name for path in paths if known.search(path.read_text())}
    assert found == {"machine.py"}
