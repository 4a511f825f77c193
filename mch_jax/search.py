"""Searches the database of a run with a photo or with a file of codes.

python -m mch_jax.search --run=DIR --image=cat.jpg --k=10
python -m mch_jax.search --run=DIR --codes=query.npz --k=10 --json
python -m mch_jax.search --run=DIR --database=codes.npz --image=cat.jpg --probe=gqr --budget=33
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mch_jax import command

DEFAULT_BUDGET = 33  # with 32 bits, as many buckets as lie within radius 1
MAX_BUDGET = 2**20


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("run", None, "Workdir of a finished run.", flag_values=values)
    flags.DEFINE_string("image", None, "A photo to search with.", flag_values=values)
    flags.DEFINE_string(
        "codes", None, "A codes file to search with; each item is a query.", flag_values=values
    )
    flags.DEFINE_string(
        "database",
        None,
        "A codes file to search instead of the run's database.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "probe",
        None,
        ["gqr", "hamming"],
        "Look only at some buckets, in the order of quantization distance or of Hamming distance.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "budget",
        None,
        "Number of buckets to look at with --probe, 33 by default; fewer if k photos are found.",
        lower_bound=1,
        upper_bound=MAX_BUDGET,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "queries",
        "one",
        ["one", "agent", "all"],
        "Codes of the photo to search with: the whole photo's, those the agent keeps, or all six.",
        flag_values=values,
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
    if options.budget and not options.probe:
        raise ValueError("--budget is for --probe; expected --probe=gqr or --probe=hamming too")
    if options.codes and options.probe == "gqr":
        raise ValueError(
            "--probe=gqr needs the logits of the query, which a codes file does not hold; use "
            "--image, or --probe=hamming"
        )
    if options.codes and options.queries != "one":
        raise ValueError(f"--queries={options.queries} is for a photo; use it with --image")
    from mch_jax import queries
    from mch_jax.database import Database, nearest_of_several, unit_margins

    run = Path(options.run)
    database = Database.open(options.database or run / "codes" / "database.npz")
    index, k = database.index, options.k
    if options.codes:
        names, codes = queries.read_codes(Path(options.codes), database)
        margins = unit_margins(codes, database.num_bits)
    else:
        command.keep_compiled()
        names = [options.image]
        codes, margins = queries.encode_image(run, Path(options.image), database, options.queries)
        if options.probe == "hamming":
            margins = unit_margins(codes, database.num_bits)
    if options.probe:
        probed = index.probe(codes, margins, options.budget or DEFAULT_BUDGET, k)
        found = queries.probed_records(names, probed, database.ids)
    elif options.queries != "one":
        hits = nearest_of_several(index, codes, k)
        found = queries.records(names, hits, database.ids)
    else:
        hits = index.search(codes.reshape(len(names), -1), k)
        found = queries.records(names, hits, database.ids)
    print(json.dumps(found) if options.json else queries.table(found))  # noqa: T201


if __name__ == "__main__":
    command.run(main)
