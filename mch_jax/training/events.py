"""Where scalars of a run go in addition to metrics.jsonl: TensorBoard's event files, and W&B."""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mch_jax.files import processes


@runtime_checkable
class Sink(Protocol):
    """Takes the scalars of a run, stage by stage."""

    def rewind(self, stage: str, step: int) -> None:
        """Forgets what a stage wrote after a step from which it resumes."""

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars under their full names, such as `base/loss`."""


def sinks(config: Any, resolved: Mapping[str, Any], workdir: Path) -> list[Sink]:
    """Returns the sinks that a config asks for. Configs of old runs lack the fields.

    Args:
      config: Config of the run.
      resolved: The same as plain values, to show them.
      workdir: Directory of the run's files.

    Raises:
      ValueError: A package is not installed.
    """
    found: list[Sink] = []
    if config.get("tensorboard", False):
        found.append(Events(workdir / "events"))
    if config.get("wandb", "") and processes.is_writer():
        found.append(WeightsAndBiases(config.wandb, resolved, workdir))
    return found


class Events:
    """The event files of a run, in one directory per stage.

    Raises:
      ValueError: The package tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory, self._paths = Path(directory), {}
        try:
            from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboardX.record_writer import masked_crc32c
        except ImportError:
            raise ValueError(
                "config.tensorboard is True and the package tensorboardX is not installed; run pip "
                "install 'mch_jax[tensorboard]', or leave it False"
            ) from None
        self._event, self._checksum = Event, masked_crc32c

    def rewind(self, stage: str, step: int) -> None:
        """Makes readers ignore what a stage wrote after a step from which it resumes."""
        self._add(stage, step + 1, session_log={"status": "START"})

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars under their full names, such as `base/loss`."""
        values = [{"tag": name, "simple_value": value} for name, value in scalars.items()]
        self._add(stage, step, summary={"value": values})

    def _add(self, stage: str, step: int, **content: Any) -> None:
        if stage not in self._paths:
            name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
            self._paths[stage] = self._directory / stage / name
            self._paths[stage].parent.mkdir(parents=True, exist_ok=True)
            self._add(stage, 0, file_version="brain.Event:2")
        event = self._event(wall_time=time.time(), step=step, **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        with open(self._paths[stage], "ab") as file:
            for part in (length, event):
                file.write(part + struct.pack("<I", self._checksum(part)))


class WeightsAndBiases:
    """A run of Weights & Biases, which a resumed run continues. Every stage has its own steps.

    Raises:
      ValueError: The package wandb is not installed.
    """

    def __init__(self, project: str, config: Mapping[str, Any], workdir: Path):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                f"config.wandb is {project!r} and the package wandb is not installed; run pip "
                "install 'mch_jax[wandb]', or leave it empty"
            ) from None
        path = workdir / "wandb_id.txt"
        known = path.read_text().strip() if path.exists() else None
        self._run = wandb.init(
            project=project, name=workdir.name, id=known, resume="allow", config=dict(config),
            dir=str(workdir),
        )  # fmt: skip
        path.write_text(self._run.id)
        self._stages: set[str] = set()

    def rewind(self, stage: str, step: int) -> None:
        """Does nothing: W&B shows the last value of a step."""

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars under their full names, such as `base/loss`."""
        if stage not in self._stages:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log({**scalars, f"{stage}/step": step})
