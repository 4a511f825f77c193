"""Codes files, format `mch-codes/1`: what they hold, and their one writer and one reader.

Nothing here imports JAX, so that a search over a file starts fast.
"""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from mch_jax.files.checkpoint import whole_file

FORMAT = "mch-codes/1"


class CodeFile(NamedTuple):
    """Several codes per image as a flat list, the form of the files and of the index.

    Attributes:
      codes: bit i of a code is bit i % 8 of byte i // 8.
      item: the row of `ids` that each code belongs to, ascending; an item's first code is the
        whole image's.
      ids: names of the images.
      keep_prob: the policy's probability; 1 for the whole image.
      box: left, top, right, bottom of the code's region, in pixels of the original image.
      labels: multi-hot labels, one row an image.
      num_bits: q.
    """

    codes: UInt8[np.ndarray, "c bytes"]
    item: Int[np.ndarray, " c"]
    ids: np.ndarray
    keep_prob: Float[np.ndarray, " c"]
    box: Int[np.ndarray, "c 4"]
    labels: UInt8[np.ndarray, "n classes"]
    num_bits: int


_DTYPES = {"codes": "u1", "item": "i8", "keep_prob": "f4", "box": "i4", "labels": "u1"}


def save(path: str | os.PathLike[str], file: CodeFile) -> None:
    """Writes a codes file, whole or not at all."""
    arrays = file._asdict() | {"num_bits": np.int64(file.num_bits), "format": np.str_(FORMAT)}
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def load(path: str | os.PathLike[str]) -> CodeFile:
    """Returns what a codes file holds; every promise of the format is checked.

    Raises:
      ValueError: the file is missing, damaged, or not in this format.
    """
    try:
        # Opened here, since np.load leaves a damaged file open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = dict(archive)
        reason = _unsound(arrays)
    except FileNotFoundError:
        raise ValueError(
            f"codes file {path} does not exist; expected an .npz that the encode stage or "
            "mch_jax.export wrote"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged archive can raise anything
        lines = (getattr(error, "strerror", None) or str(error)).splitlines()
        reason = lines[0] if lines else type(error).__name__
    if reason:
        raise ValueError(
            f"{path} is not a sound codes file: {reason}; expected an .npz of the format {FORMAT} "
            "that the encode stage or mch_jax.export wrote"
        )
    del arrays["format"]
    return CodeFile(**arrays | {"num_bits": int(arrays["num_bits"])})


def _unsound(arrays: dict[str, np.ndarray]) -> str:
    """Returns what is wrong with the arrays of a file, or nothing."""
    if str(arrays.get("format")) != FORMAT:
        return f"no array 'format' that says {FORMAT}"
    differing = sorted({*CodeFile._fields, "format"} ^ arrays.keys())
    if differing:
        return f"{'unknown' if differing[0] in arrays else 'no'} array {differing[0]!r}"
    num_bits, count, items = arrays["num_bits"], len(arrays["codes"]), len(arrays["ids"])
    if num_bits.shape:
        return f"num_bits has the shape {num_bits.shape}, expected one integer of at least 1"
    if num_bits.dtype.kind != "i" or num_bits < 1:
        return f"num_bits is {num_bits.item()!r}, expected one integer of at least 1"
    for name, dtype in _DTYPES.items():
        if arrays[name].dtype != dtype:
            return f"{name} is {arrays[name].dtype}, expected {np.dtype(dtype)}"
    if arrays["ids"].dtype.kind != "U":
        return f"ids are {arrays['ids'].dtype}, expected text"
    num_bytes = -(-int(num_bits) // 8)
    shapes = {
        "codes": (count, num_bytes), "item": (count,), "keep_prob": (count,), "box": (count, 4),
        "ids": (items,), "labels": (items, *arrays["labels"].shape[1:2]),
    }  # fmt: skip
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            return f"{name} has the shape {arrays[name].shape}, expected {shape}"
    if arrays["labels"].ndim != 2:
        return f"labels have the shape {arrays['labels'].shape}, expected a row an image"
    if num_bits % 8 and (arrays["codes"][:, -1] >> np.uint8(num_bits % 8)).any():
        return f"codes have bits set past the {num_bits} that count; padding must be 0"
    item = arrays["item"]
    steps = np.diff(item, prepend=-1)
    if (steps < 0).any() or (steps > 1).any() or item[:1].any() or (item[-1:] + 1 != items).any():
        return f"item does not go up from 0 to {items - 1} with every image in it"
    if items and not count:
        return "there are images without a code"
    return ""


def nearest_row(file: CodeFile, item: int, code: np.ndarray) -> int:
    """Returns the row of an item's code that is nearest to a code, the first one of equals."""
    first, last = np.searchsorted(file.item, [item, item + 1])
    return int(first + np.bitwise_count(file.codes[first:last] ^ code).sum(1).argmin())
