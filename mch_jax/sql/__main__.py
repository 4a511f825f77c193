"""Writes a codes file as SQL for PostgreSQL 14 or newer, with functions that search it exactly.

python -m mch_jax.sql --codes=RUN/codes/database.npz --out=codes.sql

Load the file with: psql DATABASE -v ON_ERROR_STOP=1 -f codes.sql
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mch_jax import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("codes", None, "The codes file to export.", flag_values=values)
    flags.DEFINE_string("out", None, "The SQL file to write.", flag_values=values)


def main(arguments: Sequence[str]) -> None:
    """Writes the SQL file and prints how to load it."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(options, codes="a codes file", out="the name of an SQL file to write")
    from mch_jax import sql
    from mch_jax.files import codes_file

    file = codes_file.load(options.codes)
    sql.export(file, Path(options.out))
    codes, images = len(file.codes), len(file.ids)
    command.show(f"{codes:,} codes of {images:,} images: psql DATABASE -f {options.out}")


if __name__ == "__main__":
    command.run(main)
