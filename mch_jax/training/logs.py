"""The logs of a run: metrics for programs, progress for people."""

import json
import math
import os
import sys
import time
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
from mch_jax.training.events import Sink

T = TypeVar("T")


class MetricsLog:
    """The file metrics.jsonl: one JSON object per line, with `step`, `stage` and named scalars.

    Only the first of several processes writes it.
    """

    def __init__(self, path: str | os.PathLike[str], *sinks: Sink):
        """Creates a log; what is written also goes to the sinks."""
        self._path, self._sinks = Path(path), sinks

    def rewind(self, stage: str, step: int) -> None:
        """Removes the lines that a stage wrote after a step from which it resumes."""
        if not processes.is_writer():
            return
        for sink in self._sinks:
            sink.rewind(stage, step)
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
        for sink in self._sinks:
            sink.write(stage, step, named)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl as dictionaries; an empty list if there is no file.

    Raises:
      ValueError: A line is damaged.
    """
    path = Path(path)
    return read_json_lines(path, "start the run again", schemas.METRICS) if path.exists() else []


class Progress:
    """Shows how much of a work is done, and the time that is left.

    On a terminal this is a bar, elsewhere one log line per tenth. A time below 10 s is not shown.
    """

    def __init__(self, total: int, title: str, start: int = 0, unit: str = ""):
        """Begins to show the progress.

        Args:
          total: The whole work, in units.
          title: What the work is.
          start: Units that were done before.
          unit: Name of a unit in the plural, such as photos.
        """
        self._total, self._title, self._start, self._done = total, title, start, start
        self._unit = f" {unit}" if unit else ""
        self._began = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(None, title, total, initial=start, unit=self._unit, dynamic_ncols=True)

    def advance(self, count: int = 1) -> None:
        """Adds units that are done; more than the whole work is not shown."""
        count = min(count, self._total - self._done)
        before, self._done = self._done, self._done + count
        if self._bar is not None:
            self._bar.update(count)
        elif self._done * 10 // max(1, self._total) > before * 10 // max(1, self._total):
            logging.info(
                "%s: %s of %s%s%s", self._title, f"{self._done:,}", f"{self._total:,}", self._unit,
                self._left(),
            )  # fmt: skip

    def _left(self) -> str:
        seconds = time.monotonic() - self._began
        left = seconds * (self._total - self._done) / (self._done - self._start)
        return f", {duration(left)} left" if left >= 10 else ""

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """Returns a time in whole seconds, minutes or hours, as people would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress(
    steps: Iterable[T], total: int, title: str, start: int = 0, *, unit: str = "", size: int = 1
) -> Iterator[T]:
    """Yields the steps and shows how much is done, as `Progress`.

    Args:
      steps: The steps that remain.
      total: The whole work, in units.
      title: What the work is.
      start: Units that were done before.
      unit: Name of a unit in the plural, such as photos.
      size: Units of a step; the last step may have fewer.
    """
    shown = Progress(total, title, start, unit)
    try:
        for step in steps:
            yield step
            shown.advance(size)
    finally:
        shown.close()


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
