"""Compares several codes per photo with every rival at equal cost, for a finished run.

python -m mch_jax.rivals --run=runs/coco18/coco18_dch_32_0
python -m mch_jax.rivals --run=runs/demo --json

All rows use the run's base model. The measures are F1, recall and codes read after 1, 8, 33 and 132
buckets, mAP, and codes and bytes per photo. They are printed and written to rivals.json in the
workdir; rivals.npz holds them for each query. docs/rivals.md explains the rows.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mch_jax import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("run", None, "Workdir of a finished run.", flag_values=values)
    flags.DEFINE_string(
        "long", None, "Workdir of the run with codes of twice the length; one beside --run with "
        "the same config otherwise, if there is one.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list(
        "classes", [], "Classes by which photos are relevant to each other; all by default.",
        flag_values=values,
    )  # fmt: skip
    command.define_backbone(values)
    flags.DEFINE_boolean("json", False, "Print JSON instead of a table.", flag_values=values)


def main(arguments: Sequence[str]) -> None:
    """Measures every row and prints the table."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(options, run="the workdir of a finished run")
    from mch_jax.evaluation import rival_table

    command.keep_compiled()
    long = Path(options.long) if options.long else None
    result = rival_table.compare(Path(options.run), long, options.classes, options.backbone)
    text = rival_table.as_json(result) if options.json else rival_table.text_table(result)
    command.show(text)


if __name__ == "__main__":
    command.run(main)
