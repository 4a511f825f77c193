"""Records of what a file was made from: a digest of each input, by a name in plain words.

A file whose record differs from the present inputs is stale. It is refused or made again.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

BYTES = 16


def digest(*values: np.ndarray | bytes | str | int | float | None) -> str:
    """Returns 32 hexadecimal digits that depend on every byte of the values and on their types."""
    result = hashlib.blake2b(digest_size=BYTES)
    for value in values:
        if isinstance(value, np.ndarray):
            result.update(f"{value.dtype}{value.shape}".encode())
            result.update(np.ascontiguousarray(value).tobytes())
        else:
            data = value if isinstance(value, bytes) else str(value).encode()
            result.update(f"{type(value).__name__}{len(data)} ".encode() + data)
    return result.hexdigest()


def digest_file(path: str | os.PathLike[str]) -> str:
    """Returns the digest of a file's bytes, or an empty string if there is no such file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=BYTES)).hexdigest()
    except FileNotFoundError:
        return ""


def changed(recorded: Mapping[str, Any], present: Mapping[str, str]) -> str:
    """Returns the names of the inputs that differ, joined by "and"; empty if none does.

    Args:
      recorded: Digests from a record. Inputs that it lacks are not compared.
      present: Digests of the present inputs.
    """
    names = (name for name, value in present.items() if recorded.get(name, value) != value)
    return " and ".join(names)
