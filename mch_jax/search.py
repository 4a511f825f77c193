"""Searches the database of a run with a photo or with a file of codes.

python -m mch_jax.search --run=DIR --image=cat.jpg --k=10
python -m mch_jax.search --run=DIR --codes=query.npz --k=10 --json
python -m mch_jax.search --run=DIR --image=cat.jpg --query_codes=agent
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
    flags.DEFINE_string(
        "query_codes", "one", "Codes of a photo to search with: one, agent (those that the agent "
        "keeps) or all six.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("json", False, "Print JSON instead of a table.", flag_values=values)


def main(arguments: Sequence[str]) -> None:
    """Prints the photos of the database that are nearest to the queries."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(options, run="the workdir of a finished run")
    if bool(options.image) == bool(options.codes):
        raise ValueError("expected one of --image and --codes: a photo, or a file of codes")
    from mch_jax import queries, query_codes
    from mch_jax.database import Database

    query_codes.check(options.query_codes, "--query_codes")
    if options.codes and options.query_codes != "one":
        raise ValueError(
            f"--query_codes={options.query_codes} needs --image; the items of a codes file are "
            "searched with their first code"
        )

    run = Path(options.run)
    database = Database.open(run / "codes" / "database.npz")
    if options.codes:
        names, codes = queries.read_codes(Path(options.codes), database)
    else:
        command.keep_compiled()
        names = [options.image]
        codes = queries.encode_image(run, Path(options.image), database, options.query_codes)
    if codes.ndim == 3:
        hits = query_codes.nearest(database.index, codes, options.k)
    else:
        hits = database.index.search(codes, options.k)
    found = queries.records(names, hits, database.ids)
    print(json.dumps(found) if options.json else queries.table(found))  # noqa: T201


if __name__ == "__main__":
    command.run(main)
