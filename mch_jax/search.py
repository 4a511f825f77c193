"""Searches the database of a run with a photo or with a file of codes.

python -m mch_jax.search --run=DIR --image=cat.jpg --k=10
python -m mch_jax.search --run=DIR --codes=query.npz --k=10 --json
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mch_jax import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("run", None, "Workdir of a finished run.", flag_values=values)
    flags.DEFINE_string("image", None, "A photo to search with.", flag_values=values)
    flags.DEFINE_string(
        "codes", None, "A codes file to search with; each item is a query.", flag_values=values
    )
    flags.DEFINE_integer(
        "k", 10, "Number of photos to find for each query.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_boolean("json", False, "Print JSON instead of a table.", flag_values=values)


def main(arguments: Sequence[str]) -> None:
    """Prints the photos of the database that are nearest to the queries."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(options, run="the workdir of a finished run")
    if bool(options.image) == bool(options.codes):
        raise ValueError("expected one of --image and --codes: a photo, or a file of codes")
    from mch_jax import queries
    from mch_jax.database import Database

    run = Path(options.run)
    database = Database.open(run / "codes" / "database.npz")
    if options.codes:
        names, codes = queries.read_codes(Path(options.codes), database)
    else:
        command.keep_compiled()
        names = [options.image]
        codes = queries.encode_image(run, Path(options.image), database)
    found = queries.records(names, database.index.search(codes, options.k), database.ids)
    print(json.dumps(found) if options.json else queries.table(found))  # noqa: T201


if __name__ == "__main__":
    command.run(main)
