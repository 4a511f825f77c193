"""Queries from files, and the answers to them as JSON or text, for the search command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from mch_jax.database import Database
from mch_jax.files import codes_file
from mch_jax.index import CheapestItems, NearestItems, ProbedItems


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
    run: Path, path: Path, database: Database, choice: str
) -> tuple[UInt8[np.ndarray, "1 t bytes"], Float32[np.ndarray, "1 t q"]]:
    """Returns the codes of one photo and their margins.

    Args:
      run: The workdir of the run.
      path: The photo.
      database: The database to search, whose code length is checked.
      choice: Which codes the query has, as for `Encoder.query_codes`.

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
    outputs = encoder.region_outputs(photos.resize(photo, encoder.image_size)[None])
    return encoder.query_codes(outputs, choice)


def records(
    names: Sequence[str], hits: NearestItems | CheapestItems, ids: np.ndarray
) -> list[dict[str, Any]]:
    """Returns the hits of each query as dictionaries, for JSON.

    The counts of Algorithm 1 are missing for queries with several codes.
    """
    found = []
    for m, name in enumerate(names):
        record: dict[str, Any] = {"query": name}
        if isinstance(hits, NearestItems):
            record |= {"probed": int(hits.probed[m]), "nonempty": int(hits.nonempty[m])}
        record["hits"] = [
            {"item": int(item), "id": str(ids[item]), "distance": int(distance)}
            for item, distance in zip(hits.item[m], hits.distance[m], strict=True)
            if item >= 0
        ]
        found.append(record)
    return found


def probed_records(
    names: Sequence[str], found: ProbedItems, ids: np.ndarray
) -> list[dict[str, Any]]:
    """Returns what probing has found for each query as dictionaries, for JSON."""
    return [
        {
            "query": name,
            "probed": int(found.probed[m]),
            "nonempty": int(found.nonempty[m]),
            "candidates": int(found.candidates[m]),
            "hits": [
                {"item": int(found.item[i]), "id": str(ids[found.item[i]]), "cost": cost}
                for i in range(found.offsets[m], found.offsets[m + 1])
                for cost in [round(float(found.cost[i]), 6)]
            ],
        }
        for m, name in enumerate(names)
    ]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Returns the hits as a table in plain text."""
    lines = []
    for query in found:
        is_probed = "candidates" in query
        lines.append(query["query"])
        if "probed" in query:
            counts = f"{query['probed']:,} buckets probed, {query['nonempty']:,} not empty"
            if is_probed:
                counts += f", {query['candidates']:,} codes read"
            lines[-1] += f"  ({counts})"
        lines.append(
            f"{'rank':>6} {'cost':>9}  photo" if is_probed else f"{'rank':>6} {'bits':>5}  photo"
        )
        for rank, hit in enumerate(query["hits"], 1):
            value = f"{hit['cost']:>9.3f}" if is_probed else f"{hit['distance']:>5}"
            lines.append(f"{rank:>6} {value}  {hit['id']}")
        lines.append("")
    return "\n".join(lines[:-1])
