"""Queries from files, and the answers to them as JSON or text, for the search command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mch_jax.database import Database
from mch_jax.files import codes_file
from mch_jax.index import NearestItems


def read_codes(path: Path, database: Database) -> tuple[list[str], UInt8[np.ndarray, "m bytes"]]:
    """Returns the names and codes of a file of queries; only the first code of an item is used.

    Raises:
      ValueError: The file cannot be read, or its codes are of another length.
    """
    file = codes_file.load(path)
    database.check_num_bits(file.num_bits, f"--codes={path}")
    _, first = np.unique(file.item, return_index=True)
    return file.ids.tolist(), file.codes[first]


def encode_image(
    run: Path, path: Path, database: Database, query_codes: str = "one"
) -> UInt8[np.ndarray, "1 *t bytes"]:
    """Returns the code of one photo, or several.

    Args:
      run: Workdir of a finished run.
      path: Path of the photo.
      database: The database to search, whose code length the run has to have.
      query_codes: `one` for the whole photo's code, `agent` for those that the agent keeps, `all`
        for those of all six regions.

    Raises:
      ValueError: The photo cannot be read, the run has no encoder, or it makes codes of another
        length.
    """
    from mch_jax.data import photos
    from mch_jax.encoder import FILE, Encoder  # imports JAX, which --codes does not need

    try:
        photo = photos.decode(path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f"--image={path}: {error.strerror}; expected a photo") from None
    encoder = Encoder.from_run(run)
    database.check_num_bits(encoder.model.num_bits, run / FILE)
    image = photos.resize(photo, encoder.image_size)[None]
    if query_codes == "one":
        return encoder.encode(image)
    return encoder.query_regions(image).chosen(query_codes).codes


def records(names: Sequence[str], hits: NearestItems, ids: np.ndarray) -> list[dict[str, Any]]:
    """Returns the hits of each query as dictionaries, for JSON."""
    return [
        {
            "query": name,
            "probed": int(hits.probed[m]),
            "nonempty": int(hits.nonempty[m]),
            "hits": [
                {"item": int(item), "id": str(ids[item]), "distance": int(distance)}
                for item, distance in zip(hits.item[m], hits.distance[m], strict=True)
                if item >= 0
            ],
        }
        for m, name in enumerate(names)
    ]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Returns the hits as a table in plain text."""
    lines = []
    for query in found:
        counts = f"{query['probed']:,} buckets probed, {query['nonempty']:,} not empty"
        lines += [f"{query['query']}  ({counts})", f"{'rank':>6} {'bits':>5}  photo"]
        for rank, hit in enumerate(query["hits"], 1):
            lines.append(f"{rank:>6} {hit['distance']:>5}  {hit['id']}")
        lines.append("")
    return "\n".join(lines[:-1])
