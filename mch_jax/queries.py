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


def encode_image(run: Path, path: Path, database: Database) -> UInt8[np.ndarray, "1 bytes"]:
    """Returns the code of one photo.

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
    return encoder.encode(photos.resize(photo, encoder.image_size)[None])


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
