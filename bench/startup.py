"""Measures the time from the start of `main` to the end of its first step."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import measure

# All layers are trained, so that everything is compiled; few scenes are made.
FLAGS = (
    "--config.base.train_conv=True", "--config.model.weights=",
    "--config.model.hidden=4096", "--config.base.batch_size=16",
)  # fmt: skip
FIRST_STEP = """
import os, runpy, sys, time
from pathlib import Path
began, out = float(sys.argv[1]), sys.argv[2]
from mch_jax.training import base_step
over_devices = base_step.over_devices
def timed(*arguments, **settings):
    step = over_devices(*arguments, **settings)
    def first(*arguments):
        import jax
        jax.block_until_ready(step(*arguments))
        Path(out).write_text(str(time.time() - began))
        os._exit(0)
    return first
base_step.over_devices = timed
sys.argv = ["mch_jax.main", *sys.argv[3:]]
runpy.run_module("mch_jax.main", run_name="__main__")
"""
CONFIG = """
from configs import scenes_dch

def get_config():
    config = scenes_dch.get_config()
    config.dataset.settings = {"num_train": 64, "num_database": 16, "num_query": 8}
    return config
"""


def first_step(directory: Path, cache: Path) -> float:
    """Returns the seconds from the start of the command to the end of its first step."""
    import time

    config, out = directory / "config.py", directory / "seconds"
    config.write_text(CONFIG)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    environment |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.getcwd()}
    arguments = [f"--config={config}", f"--workdir={directory / 'run'}", *FLAGS]
    subprocess.run(
        [sys.executable, "-c", FIRST_STEP, str(time.time()), str(out), *arguments],
        env=environment, check=True, capture_output=True,
    )  # fmt: skip
    return float(out.read_text())


def startup(quick: bool) -> list[measure.Row]:
    """Measures the start of training all layers of AlexNet, with a cold and a warm cache."""
    rounds, seconds = 1 if quick else 3, {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(rounds):
            for state in ("cold", "warm"):
                directory = Path(name) / f"{state}{turn}"
                directory.mkdir()
                cache = Path(name) / f"cache{turn}"
                seconds[state].append(first_step(directory, cache))
    timings = {
        "ours": measure.Timing(seconds["warm"], seconds["warm"]),
        "the first start, cache cold": measure.Timing(seconds["cold"], seconds["cold"]),
    }
    warm, cold = (timings[x].seconds for x in ("ours", "the first start, cache cold"))
    result = measure.row(
        "start of main to its first step, compile cache warm", 1, "starts/s", timings,
        peer="the first start, cache cold",
        note=f"{warm:.1f} s, cold {cold:.1f} s; AlexNet, all layers, batch 16, scenes made anew",
    )  # fmt: skip
    if measure.num_threads() == 2 and not quick:
        result.target, result.met = "< 10 s on 2 cores", warm < 10
    return [result]
