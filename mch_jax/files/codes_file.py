"""Codes files of the format `mch-codes/1`: their content, writer and reader.

This module does not import JAX, so that a search in a codes file starts quickly.
"""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from mch_jax.files.whole import first_line, read_zip, whole_file

FORMAT = "mch-codes/1"


class CodeFile(NamedTuple):
    """The codes of a set of items as a flat list, as codes files and the index have them.

    An item is an image with one or more codes.

    Attributes:
      codes: Packed codes. Bit i of a code is bit i % 8 of byte i // 8.
      item: The row of `ids` that each code belongs to, in ascending order. The first code of an
        item is that of the whole image.
      ids: Names of the items.
      keep_prob: The policy's probability of keeping each code; 1 for the whole image.
      box: Left, top, right and bottom of the region of each code, in pixels of the original image.
      labels: Multi-hot labels of the items.
      num_bits: Length of a code in bits.
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
    """Writes a codes file, completely or not at all.

    Args:
      path: Path of the file.
      file: Its content.
    """
    arrays = file._asdict() | {"num_bits": np.int64(file.num_bits), "format": np.str_(FORMAT)}
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)


def load(path: str | os.PathLike[str]) -> CodeFile:
    """Returns the content of a codes file.

    Raises:
      ValueError: The file is missing or damaged, or violates a rule of the format.
    """
    try:
        arrays = read_zip(path, {*CodeFile._fields, "format"})
        reason = _violation(arrays)
    except FileNotFoundError:
        raise ValueError(
            f"codes file {path} does not exist; expected an .npz that the encode stage or "
            "mch_jax.export wrote"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged archive can raise anything
        reason = getattr(error, "strerror", None) or first_line(error)
    if reason:
        raise ValueError(
            f"{path} is not a sound codes file: {reason}; expected an .npz of the format {FORMAT} "
            "that the encode stage or mch_jax.export wrote"
        )
    del arrays["format"]
    num_bits = int(arrays.pop("num_bits"))
    return CodeFile(**arrays, num_bits=num_bits)


def _violation(arrays: dict[str, np.ndarray]) -> str:
    """Returns the first rule of the format that the arrays violate, or an empty string."""
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
        return f"labels have the shape {arrays['labels'].shape}, expected one row per item"
    if num_bits % 8 and (arrays["codes"][:, -1] >> np.uint8(num_bits % 8)).any():
        return f"codes have bits set after the first {num_bits}; padding must be 0"
    item = arrays["item"]
    steps = np.diff(item, prepend=-1)
    if (steps < 0).any() or (steps > 1).any() or item[:1].any() or (item[-1:] + 1 != items).any():
        return f"item does not ascend from 0 to {items - 1} in steps of 0 or 1"
    if items and not count:
        return "some items have no code"
    return ""
