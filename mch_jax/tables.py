"""Makes the tables and figures of the paper from the runs of a grid.

python -m mch_jax.tables --root=runs/coco18

Writes into {root}/tables: tables.md; recall.png and precision.png within radius 0 (the paper's
Figures 3 and 4); f1-{bits}.png, F1 against buckets probed (5 to 7); gallery.png, nearest photos
with both distances (8); sensitivity.png, to sigma and xi (9), for runs that mch_jax.sweep has
measured.

Differences are paired by seed: two choices of codes of one run share the base model, the regions
and the queries. Intervals are Student's at 95 % over seeds; a single seed has none.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mch_jax import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "root", None, "Folder of the runs, as given to mch_jax.grid.", flag_values=values
    )
    flags.DEFINE_string(
        "out", None, "Folder to write to; {root}/tables by default.", flag_values=values
    )


def main(arguments: Sequence[str]) -> None:
    """Writes the tables and figures, and prints the tables."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(options, root="the folder of a grid's runs")
    from mch_jax.report import paper_tables

    root = Path(options.root)
    written = paper_tables.write(root, Path(options.out) if options.out else root / "tables")
    command.show(written[0].read_text("utf-8"), *written)


if __name__ == "__main__":
    command.run(main)
