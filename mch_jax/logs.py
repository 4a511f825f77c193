"""What a run says while it works: metrics for machines, progress for people."""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from absl import logging
from jaxtyping import ScalarLike
from tqdm import tqdm

from mch_jax.checkpoint import whole_file, writes_files

T = TypeVar("T")


class MetricsLog:
    """The file metrics.jsonl: one JSON object a line, with `step`, `stage` and named scalars."""

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)

    def rewind(self, stage: str, step: int) -> None:
        """Drops what a stage wrote after a step: it goes on from there."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the last line of a killed run
                continue
            if row["stage"] != stage or row["step"] <= step:
                kept.append(line + "\n")
        with whole_file(self._path) as temporary:
            temporary.write_text("".join(kept))

    def write(self, stage: str, step: int, **scalars: ScalarLike) -> None:
        """Appends one line; the names get the stage before them, as in `agent/reward`."""
        if not writes_files():
            return
        row: dict[str, Any] = {"step": step, "stage": stage}
        row |= {f"{stage}/{name}": float(value) for name, value in scalars.items()}
        with open(self._path, "a") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl as dictionaries; none where there is no file."""
    path = Path(path)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def progress(steps: Iterable[T], total: int, title: str, start: int = 0) -> Iterator[T]:
    """Yields the steps; on a terminal a bar with rate and time left, else a line each tenth."""
    if sys.stderr.isatty():
        yield from tqdm(steps, title, total, initial=start, dynamic_ncols=True)
        return
    for done, step in enumerate(steps, start + 1):
        yield step
        if done == total or done * 10 // total > (done - 1) * 10 // total:
            logging.info("%s: %d of %d", title, done, total)


def check_finite(stage: str, step: int, scalars: Mapping[str, Any]) -> None:
    """Raises ValueError where a scalar is not finite."""
    for name, value in scalars.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{stage}/{name} is {float(value)} at step {step}; the last checkpoint is kept, "
                f"lower {stage}.learning_rate and start again"
            )
