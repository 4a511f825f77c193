"""The stages of a run in their order, and the verification of a finished run.

The functions import what they need themselves. These imports take seconds, for which a command that
prints its help or refuses an argument should not wait.
"""

from pathlib import Path
from typing import Any

from absl import logging

from mch_jax.files.text import printable

STAGES = ("base", "agent", "encode", "evaluate", "report")


def run_stages(config: Any, workdir: Path, stage: str = "all") -> dict[str, Any] | None:
    """Runs one stage or all of them; each resumes where an earlier call stopped.

    Args:
      config: Config of the run.
      workdir: Directory of the run's files.
      stage: One of STAGES, or "all".

    Returns:
      The content of results.json if `evaluate` is among the stages, else None. With several
      processes, all but the first return None.

    Raises:
      ValueError: The config or its data cannot be used, or the workdir belongs to another config or
        is in use by another process.
    """
    from mch_jax.training import claims, validation

    validation.check(config)
    with claims.claimed(workdir):
        return _run_stages(config, workdir, stage)


def _run_stages(config: Any, workdir: Path, stage: str) -> dict[str, Any] | None:
    """Runs one stage or all of them in a workdir that this process has claimed."""
    from mch_jax import evaluation, report
    from mch_jax.methods import OBJECTIVES
    from mch_jax.training import base, cross_fit, encode, paper, parallel, run, threshold

    this = run.open_run(config, workdir)
    config = this.config
    chosen = STAGES if stage == "all" else (stage,)
    logging.info("data set %s", {k: v for k, v in this.audit.items() if k != "per_class"})
    params: Any = None
    variables: dict[str, Any] = {}
    if {"base", "agent", "encode"} & set(chosen) and not (stage == "all" and encode.is_done(this)):
        params = base.train(this)
        if config.method in OBJECTIVES and {"agent", "encode"} & set(chosen):
            recipe = {"paper": paper, "cross_fit": cross_fit}[config.agent.recipe]
            variables = recipe.train(this, params)
    if not parallel.leave():
        return None
    if params is not None and "encode" in chosen:
        chosen_threshold = threshold.chosen(this) if variables else None
        encoder = encode.make_encoder(
            config, this.model, params, variables, chosen_threshold, this.backbone,
            this.evidence_backbone,
        )  # fmt: skip
        encode.encode(this, encoder)
    elif stage in ("evaluate", "report"):
        encode.check(this)
    results = None
    if "evaluate" in chosen:
        results = evaluation.write_results(workdir, this.resolved, this.dataset.name)
    if "report" in chosen:
        report.write(workdir, this.dataset, this.audit)
    return results


def verify(workdir: Path) -> int:
    """Recomputes the measures of a finished run from its codes and prints where they differ.

    Returns:
      0 if every value of results.json agrees, else 1.

    Raises:
      ValueError: The run is not finished, or one of its files is missing or damaged.
    """
    from mch_jax import evaluation
    from mch_jax.evaluation import provenance

    lines = evaluation.verify(workdir)
    for line in lines:
        print(printable(line))  # noqa: T201
    results = evaluation.read_results(workdir)
    total = provenance.num_values({k: v for k, v in results.items() if k != "provenance"})
    verdict = f"DIFFERS in {len(lines)} values" if lines else f"agrees in {total} values"
    print(printable(f"{workdir / 'results.json'} {verdict} with the run's codes"))  # noqa: T201
    return 1 if lines else 0
