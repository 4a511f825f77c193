"""Queries from files, and the answers to them as JSON or text, for the search command."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mch_jax.database import Database
from mch_jax.files import codes_file
from mch_jax.files.text import printable
from mch_jax.index import CheapestItems, NearestItems, ProbedItems
from mch_jax.query_codes import QueryRegions


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
    run: Path,
    path: Path,
    database: Database,
    query_codes: str = "one",
    backbone: str | None = None,
) -> QueryRegions:
    """Returns the code of one photo, or several, with their logits.

    Args:
      run: Workdir of a finished run.
      path: Path of the photo.
      database: The database to search, whose code length the run has to have.
      query_codes: `one` for the whole photo's code, `agent` for those that the agent keeps, `all`
        for those of all six regions.
      backbone: The run's backbone, as `Encoder.from_run` takes it.

    Raises:
      ValueError: The photo cannot be read, the run has no encoder, it makes codes of another
        length, or its backbone cannot be opened.
    """
    from mch_jax.data import photos
    from mch_jax.encoder import FILE, Encoder  # imports JAX, which --codes does not need

    try:
        data = photos.read_bytes(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--image={path}: {reason}; expected a photo") from None
    photo = photos.decode(data, str(path))
    encoder = Encoder.from_run(run, backbone)
    database.check_num_bits(encoder.model.num_bits, run / FILE)
    return encoder.query(photos.resize(photo, encoder.image_size)[None], query_codes)


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


def probed_records(
    names: Sequence[str], found: ProbedItems, ids: np.ndarray
) -> list[dict[str, Any]]:
    """Returns what probing has found for each query as dictionaries, for JSON."""
    found_by_query = []
    for m, name in enumerate(names):
        rows = slice(int(found.offsets[m]), int(found.offsets[m + 1]))
        found_by_query.append(
            {
                "query": name,
                "probed": int(found.probed[m]),
                "nonempty": int(found.nonempty[m]),
                "candidates": int(found.candidates[m]),
                "hits": _costs(found.item[rows], found.cost[rows], ids),
            }
        )
    return found_by_query


def ranked_records(
    names: Sequence[str], hits: CheapestItems, ids: np.ndarray
) -> list[dict[str, Any]]:
    """Returns the hits by asymmetric distance as dictionaries, which say what was ranked."""
    return [
        {
            "query": name,
            "ranked": "all" if hits.rerank is None else hits.rerank,
            "hits": _costs(hits.item[m], hits.distance[m], ids),
        }
        for m, name in enumerate(names)
    ]


def _costs(items: np.ndarray, costs: np.ndarray, ids: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"item": int(item), "id": str(ids[item]), "cost": round(float(cost), 6)}
        for item, cost in zip(items, costs, strict=True)
        if item >= 0
    ]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Returns the hits as a table in plain text, without control characters of names."""
    lines = []
    for query in found:
        lines += [f"{printable(query['query'])}  ({_said(query)})", _table(query["hits"])]
        lines.append("")
    return "\n".join(lines[:-1])


def _said(query: dict[str, Any]) -> str:
    """Returns the counts of an answer, or how it was ranked."""
    if "ranked" in query:
        ranked = query["ranked"]
        among = "all photos, exactly" if ranked == "all" else f"the {ranked:,} nearest in bits"
        return f"by asymmetric distance among {among}"
    said = f"{query['probed']:,} buckets probed, {query['nonempty']:,} not empty"
    return said + (f", {query['candidates']:,} codes read" if "candidates" in query else "")


def _table(hits: Sequence[dict[str, Any]]) -> str:
    """Returns ranks, distances and names, one photo per line."""
    if hits and "cost" in hits[0]:
        head, values = f"{'cost':>9}", [f"{hit['cost']:>9.3f}" for hit in hits]
    else:
        head, values = f"{'bits':>5}", [f"{hit['distance']:>5}" for hit in hits]
    lines = [f"{'rank':>6} {head}  photo"]
    for rank, (hit, value) in enumerate(zip(hits, values, strict=True), 1):
        lines.append(f"{rank:>6} {value}  {printable(hit['id'])}")
    return "\n".join(lines)
