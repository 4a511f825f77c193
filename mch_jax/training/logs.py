"""The logs of a run: metrics for programs, progress for people."""

import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from absl import logging
from jaxtyping import ScalarLike
from tqdm import tqdm

from mch_jax.files import json_values, processes, read_json_lines, schemas, whole_file
from mch_jax.files.regular import read_bounded
from mch_jax.files.whole import MAX_JSON
from mch_jax.training.events import Events

T = TypeVar("T")


class MetricsLog:
    """The file metrics.jsonl: one JSON object per line, with `step`, `stage` and named scalars.

    Only the first of several processes writes it.
    """

    def __init__(self, path: str | os.PathLike[str], events: Events | None = None):
        self._path, self._events = Path(path), events

    def rewind(self, stage: str, step: int) -> None:
        """Removes the lines that a stage wrote after a step from which it resumes."""
        if not processes.is_writer():
            return
        if self._events:
            self._events.rewind(stage, step)
        if not self._path.exists():
            return
        kept = []
        for line in read_bounded(self._path, MAX_JSON).decode("utf-8", "replace").splitlines():
            try:
                row = json_values.parse(line)
                json_values.check(row, schemas.METRICS)
            except (ValueError, RecursionError):  # as the incomplete last line of a killed run
                continue
            if row["stage"] != stage or row["step"] <= step:
                kept.append(line + "\n")
        with whole_file(self._path) as temporary:
            temporary.write_text("".join(kept))

    def write(self, stage: str, step: int, **scalars: ScalarLike) -> None:
        """Appends one line. The stage precedes the names of the scalars, as in `agent/reward`."""
        if not processes.is_writer():
            return
        row: dict[str, Any] = {"step": step, "stage": stage}
        named = {f"{stage}/{name}": float(np.asarray(value)) for name, value in scalars.items()}
        with open(self._path, "a") as file:
            file.write(json.dumps(row | named) + "\n")
        if self._events:
            self._events.write(stage, step, named)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl as dictionaries; an empty list if there is no file.

    Raises:
      ValueError: A line is damaged.
    """
    path = Path(path)
    return read_json_lines(path, "start the run again", schemas.METRICS) if path.exists() else []


def progress(steps: Iterable[T], total: int, title: str, start: int = 0) -> Iterator[T]:
    """Yields the steps and shows how many are done.

    On a terminal this is a bar with rate and remaining time, elsewhere one log line per tenth.

    Args:
      steps: The steps that remain.
      total: Number of all steps.
      title: What the steps are.
      start: Number of steps that were done before.
    """
    if sys.stderr.isatty():
        yield from tqdm(steps, title, total, initial=start, dynamic_ncols=True)
        return
    for done, step in enumerate(steps, start + 1):
        yield step
        if done == total or done * 10 // total > (done - 1) * 10 // total:
            logging.info("%s: %d of %d", title, done, total)


class FiniteGuard:
    """Stops a training loop at the first step whose scalars are not finite.

    The scalars of a step are read while the next step is running, so that the device never waits.
    """

    def __init__(self, stage: str):
        self._stage = stage
        self._last: tuple[int, Mapping[str, Any]] | None = None

    def watch(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Checks the previous step, and keeps the scalars of this step for the next call."""
        self.check()
        self._last = step, scalars

    def check(self) -> None:
        """Checks the latest step at once, for instance before a checkpoint, as `check_finite`."""
        if self._last is not None:
            check_finite(self._stage, *self._last)
            self._last = None


def check_finite(stage: str, step: int, scalars: Mapping[str, Any]) -> None:
    """Raises ValueError if a scalar is not finite."""
    for name, value in scalars.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{stage}/{name} is {float(value)} at step {step}; the last checkpoint is kept, "
                f"lower {stage}.learning_rate and start again"
            )
