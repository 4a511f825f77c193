"""Trains further agents on the base models of finished runs, one for each lever of docs/agent.md.

    python launch/levers.py --runs=runs/coco18 --features=features.npz --root=runs/levers
    python -m mch_jax.tables --root=runs/levers/features_each

The levers are what the labels are told from (`head`: the base model's label head, `features`: a
features file, `agent.evidence_features`) and how codes are chosen (`agent.select`). Each run of the
agent has its own folder {root}/{lever}/{name of the run}, with the base model's codes unchanged.
Rerun the same command to resume.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mch_jax import command, evaluation
from mch_jax.files import write_json
from mch_jax.training import base, cross_fit, encode, run, threshold, validation

LEVERS = {  # whether labels are told from the file, and `agent.select`
    "head_set": (False, "set"),
    "features_each": (True, "each"),
    "features_set": (True, "set"),
}


def train(of: run.Run, workdir: Path, features: str, select: str) -> None:
    """Trains an agent on the base models of a run, and writes codes and results.

    Args:
      of: The finished run, by the recipe `cross_fit`.
      workdir: Folder of the agent's run.
      features: Path of the features file that labels are told from, or "" for the base's head.
      select: `agent.select`.
    """
    config: Any = of.config.copy_and_resolve_references()
    config.agent.evidence_features, config.agent.select = features, select
    validation.check(config)
    this = dataclasses.replace(of, config=config, workdir=workdir)
    write_json(workdir / "config.json", this.resolved)
    params = base.train(of)
    variables = cross_fit.train(this, params, of)
    chosen = threshold.chosen(this)
    encode.encode(this, encode.make_encoder(config, this.model, params, variables, chosen))
    evaluation.write_results(workdir, this.resolved, this.dataset.name)


def main(arguments: Sequence[str]) -> int:
    """Trains the agents of every lever and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of the finished runs")
    parser.add_argument("--features", required=True, help="features file of the photos")
    parser.add_argument("--root", type=Path, required=True, help="folder of the agents' runs")
    parser.add_argument("--levers", default=",".join(LEVERS), help="of " + ", ".join(LEVERS))
    parser.add_argument("--names", default="*", help="pattern of the runs' names")
    options = parser.parse_args(arguments)
    levers = options.levers.split(",")
    for lever in levers:
        if lever not in LEVERS:
            raise ValueError(f"--levers has '{lever}', expected some of {', '.join(LEVERS)}")
    finished = sorted(options.runs.glob(f"{options.names}/results.json"))
    if not finished:
        raise ValueError(f"--runs={options.runs} holds no finished run named {options.names}")
    for workdir in (path.parent for path in finished):
        for lever in levers:
            reads_file, select = LEVERS[lever]
            of_lever = options.root / lever / workdir.name
            if not (of_lever / "results.json").exists():
                train(run.reopen(workdir), of_lever, options.features if reads_file else "", select)
                print(of_lever)  # noqa: T201
    return 0


if __name__ == "__main__":
    command.run(main)
