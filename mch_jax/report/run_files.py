"""What the report reads of a finished run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mch_jax.evaluation import results
from mch_jax.files import codes_file
from mch_jax.files.codes_file import CodeFile
from mch_jax.training import logs, run


class RunFiles(NamedTuple):
    """What the report reads of a run's directory.

    Attributes:
      config: Resolved config.
      results: What results.json holds.
      metrics: The lines of metrics.jsonl.
      query: Codes of the queries.
      database: Codes of the database.
      regions: Codes, keep probabilities, boxes and true rewards of the database's regions.
    """

    config: Mapping[str, Any]
    results: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    query: CodeFile
    database: CodeFile
    regions: Mapping[str, np.ndarray]

    @property
    def has_several_codes(self) -> bool:
        """True where any photo of the database has more than one code."""
        return len(self.database.codes) > len(self.database.ids)

    @property
    def has_agent(self) -> bool:
        """True for a method with an agent, whose results have controls."""
        return "controls" in self.results

    @property
    def keep_threshold(self) -> float:
        """Smallest keep probability of a code that is kept: calibrated, or the config's."""
        found = self.results.get("calibration", self.config["encode"])
        return found["keep_threshold"]


def read(workdir: Path) -> RunFiles:
    """Returns what the report shows of a finished run.

    Raises:
      ValueError: A stage has not run yet, or a file is damaged.
    """
    directory = workdir / "codes"
    database = codes_file.load(directory / "database.npz")
    return RunFiles(
        regions=results.read_regions(directory, database),
        config=run.read_config(workdir),
        results=results.read_results(workdir),
        metrics=logs.read_metrics(workdir / "metrics.jsonl"),
        query=codes_file.load(directory / "query.npz"),
        database=database,
    )
