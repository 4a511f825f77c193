"""TensorBoard's event files, which are written in addition to metrics.jsonl."""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Events:
    """The event files of a run, in one directory per stage.

    Raises:
      ValueError: The package tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        try:
            from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
            from tensorboardX.record_writer import masked_crc32c
        except ImportError:
            raise ValueError(
                "config.tensorboard is True and the package tensorboardX is not installed; run pip "
                "install 'mch_jax[tensorboard]', or leave it False"
            ) from None
        self._directory, self._paths = Path(directory), {}
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
