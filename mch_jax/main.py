"""Runs all stages: base model, agent, codes, measures, report. Rerun the same command to resume.

python -m mch_jax.main --config=configs/scenes_dch.py --workdir=runs/mine
python -m mch_jax.main --config=coco_dch --config.num_bits=16 --config.seed=1
python -m mch_jax.main --config=configs/folder_dch.py --config.dataset.root=DIR
python -m mch_jax.main --config=configs/scenes_dch.py --workdir=runs/mine --stage=report
python -m mch_jax.main --verify=runs/mine

The fields of a config are in configs/default.py; each is also a flag, such as --config.num_bits.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mch_jax import command, config_files
from mch_jax.command import keep_compiled
from mch_jax.pipeline import STAGES, run_stages, verify


def define_flags(values: flags.FlagValues, arguments: Sequence[str] = ()) -> None:
    """Defines the flags of the command; the config finds its fields in the arguments."""
    config_flags.DEFINE_config_file(
        "config", None, "Name or path of the config, such as coco_dch.", values,
        sys_argv=["mch_jax", *arguments],
    )  # fmt: skip
    flags.DEFINE_string(
        "workdir", None, "Directory of the run's files; a new one under runs/ by default.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum("stage", "all", (*STAGES, "all"), "The stage to run.", flag_values=values)
    flags.DEFINE_integer(
        "processes", 1, "Number of processes that train together.", lower_bound=1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "process", 0, "Number of this process, counted from 0.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.", flag_values=values)
    flags.DEFINE_string(
        "verify", None, "Recomputes the measures of this finished run from its codes, and compares "
        "them.", flag_values=values,
    )  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Runs the stages, or verifies a finished run."""
    arguments = config_files.resolved(arguments)
    define = functools.partial(define_flags, arguments=arguments)
    options = command.parse(arguments, define, __doc__)
    if not options.verify:
        command.require(options, config="a name or a file, such as --config=scenes_dch")
    keep_compiled()
    if options.verify:
        return verify(Path(options.verify))

    from mch_jax import evaluation
    from mch_jax.training import run, termination

    termination.install()
    if options.processes > 1 or options.coordinator:
        from mch_jax.training import parallel

        parallel.start(options.coordinator, options.processes, options.process)
    workdir = Path(options.workdir or run.default_workdir(options.config))
    results = run_stages(options.config, workdir, options.stage)
    if results:
        command.show(evaluation.text_table(results))
    if options.stage in ("all", "report") and options.process == 0:
        command.show(f"report: {workdir / 'report' / 'index.html'}")
    return 0


if __name__ == "__main__":
    command.run(main)
