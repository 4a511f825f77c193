"""Searches the database of a run with a photo or with a file of codes.

python -m mch_jax.search --run=DIR --image=cat.jpg --k=10
python -m mch_jax.search --run=DIR --codes=query.npz --k=10 --json
python -m mch_jax.search --run=DIR --image=cat.jpg --rank=asymmetric --rerank=100
python -m mch_jax.search --run=DIR --database=codes.npz --image=cat.jpg --probe=gqr --budget=33
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        "database", None, "A codes file to search instead of the run's database.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "k", 10, "Number of photos to find for each query.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string(
        "query_codes", "one", "Codes of a photo to search with: one, agent (those that the agent "
        "keeps) or all six.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "probe", None, ["gqr", "hamming"], "Look only at some buckets, in the order of "
        "quantization distance (gqr) or of Hamming distance.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "budget", None, "Buckets to look at with --probe, 33 by default; fewer if k photos are "
        "found.", lower_bound=1, upper_bound=MAX_BUDGET, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "rank", "hamming", ["hamming", "asymmetric"], "Order of the photos found: by Hamming "
        "distance and then by the photo's logits, or by its logits alone.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "rerank", None, "With --rank=asymmetric, rank only so many photos, the nearest in bits; "
        "all by default.", lower_bound=1, flag_values=values,
    )  # fmt: skip
    command.define_backbone(values)
    flags.DEFINE_boolean("json", False, "Print JSON instead of a table.", flag_values=values)


def _check(options: flags.FlagValues) -> None:
    """Checks that the flags fit each other."""
    from mch_jax import query_codes

    command.require(options, run="the workdir of a finished run")
    if bool(options.image) == bool(options.codes):
        raise ValueError("expected one of --image and --codes: a photo, or a file of codes")
    query_codes.check(options.query_codes, "--query_codes")
    if options.codes and options.query_codes != "one":
        raise ValueError(
            f"--query_codes={options.query_codes} needs --image; the items of a codes file are "
            "searched with their first code"
        )
    if options.budget and not options.probe:
        raise ValueError("--budget needs --probe; expected --probe=gqr or --probe=hamming too")
    if options.codes and options.probe == "gqr":
        raise ValueError(
            "--probe=gqr needs the logits of the query, which a codes file does not hold; use "
            "--image, or --probe=hamming"
        )
    is_asymmetric = options.rank == "asymmetric"
    if is_asymmetric and (options.codes or options.probe):
        raise ValueError("--rank=asymmetric needs --image, without --probe")
    if options.rerank and (not is_asymmetric or options.rerank < options.k):
        raise ValueError(
            f"--rerank={options.rerank} needs --rank=asymmetric and at least --k={options.k}"
        )


def _found(options: flags.FlagValues) -> list[dict[str, Any]]:
    """Returns the answers to all queries."""
    import numpy as np

    from mch_jax import queries, query_codes
    from mch_jax.database import Database

    run = Path(options.run)
    database = Database.open(options.database or run / "codes" / "database.npz")
    query, index = None, database.index
    if options.codes:
        names, codes = queries.read_codes(Path(options.codes), database)
    else:
        command.keep_compiled()
        query = queries.encode_image(
            run, Path(options.image), database, options.query_codes, options.backbone
        )
        names, codes = [options.image], query.codes
    if options.probe:
        margins = query_codes.unit_margins(codes, database.num_bits)
        if query is not None and options.probe == "gqr":
            margins = query.margins
        found = index.probe(codes, margins, options.budget or DEFAULT_BUDGET, options.k)
        return queries.probed_records(names, found, database.ids)
    if query is None:
        return queries.records(names, index.search(codes, options.k), database.ids)
    if options.rank == "asymmetric":
        best = index.search(codes, options.k, margins=query.margins, rerank=options.rerank)
        return queries.ranked_records(names, best, database.ids)
    near, hits = database.search(
        codes[0], options.k, margins=query.margins[0], first=database.item_of(options.image)
    )
    item, distance = np.array([pair[:2] for pair in near], np.int64).reshape(-1, 2).T[:, None]
    return queries.records(names, hits._replace(item=item, distance=distance), database.ids)


def main(arguments: Sequence[str]) -> None:
    """Prints the photos of the database that are nearest to the queries."""
    options = command.parse(arguments, define_flags, __doc__)
    _check(options)
    from mch_jax import queries

    found = _found(options)
    command.show(json.dumps(found) if options.json else queries.table(found))


if __name__ == "__main__":
    command.run(main)
