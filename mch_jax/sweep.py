"""Measures a run at other side ratios of the crops and other keep thresholds, without training.

python -m mch_jax.sweep --run=runs/coco18/coco18_dch_32_0
python -m mch_jax.sweep --run=runs/demo --ratios=0.3,0.5 --thresholds=0.1,0.5,0.9

The measures (the paper's Table 3 and Figure 9) are printed and written to sweep.json in the
workdir, from which mch_jax.tables draws them. The base model and the agent are those of the run.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mch_jax import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "run", None, "Workdir of a finished run whose method has an agent.", flag_values=values
    )
    flags.DEFINE_list(
        "ratios", ["0.3", "0.5", "0.7", "0.9"], "Side ratios sigma.", flag_values=values
    )
    flags.DEFINE_list(
        "thresholds", ["0", "0.1", "0.3", "0.5", "0.7", "0.9", "1"], "Keep thresholds xi.",
        flag_values=values,
    )  # fmt: skip
    command.define_backbone(values)


def main(arguments: Sequence[str]) -> None:
    """Measures the run at every ratio and threshold, and prints the table."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(options, run="the workdir of a finished run")
    try:
        ratios, thresholds = (
            [float(x) for x in given] for given in (options.ratios, options.thresholds)
        )
    except ValueError:
        raise ValueError("--ratios and --thresholds take numbers, such as 0.3,0.5") from None
    from mch_jax.evaluation import sweep

    rows = sweep.sweep(Path(options.run), ratios, thresholds, options.backbone)
    command.show(sweep.table(rows))


if __name__ == "__main__":
    command.run(main)
