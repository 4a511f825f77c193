"""Codes files of the format `mch-codes/1`: their content, writer and reader.

This module does not import JAX, so that a search in a codes file starts quickly.
"""

import os
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from mch_jax.files import npz
from mch_jax.files.npz import Field
from mch_jax.files.whole import first_line, whole_file

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


_FIELDS = {
    "format": Field("U", ()),
    "num_bits": Field("i", ()),
    "codes": Field("u1", ("codes", "bytes")),
    "item": Field("i8", ("codes",)),
    "ids": Field("U", ("items",)),
    "keep_prob": Field("f4", ("codes",), 0, 1),
    "box": Field("i4", ("codes", 4), 0),
    "labels": Field("u1", ("items", "classes"), 0, 1),
}


def save(path: str | os.PathLike[str], file: CodeFile) -> None:
    """Writes a codes file, completely or not at all.

    Args:
      path: Path of the file.
      file: Its content.

    Raises:
      ValueError: A name is so much longer than the others that `load` would refuse the file.
    """
    arrays = file._asdict() | {"num_bits": np.int64(file.num_bits), "format": np.str_(FORMAT)}
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **arrays)
        stream.flush()
        npz.check_declared(temporary)


def load(path: str | os.PathLike[str]) -> CodeFile:
    """Returns the content of a codes file.

    Raises:
      ValueError: The file is missing or damaged, or violates a rule of the format.
    """
    try:
        arrays = npz.read(path, _FIELDS)
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
    if str(arrays["format"]) != FORMAT:
        return f"no array 'format' that says {FORMAT}"
    num_bits, (count, width), items = arrays["num_bits"], arrays["codes"].shape, len(arrays["ids"])
    if num_bits < 1:
        return f"num_bits is {num_bits.item()!r}, expected one integer of at least 1"
    num_bytes = -(-int(num_bits) // 8)
    if width != num_bytes:
        return f"codes has the shape {(count, width)}, expected {(count, num_bytes)}"
    if num_bits % 8 and (arrays["codes"][:, -1] >> np.uint8(num_bits % 8)).any():
        return f"codes have bits set after the first {num_bits}; padding must be 0"
    item = arrays["item"]
    steps = np.diff(item, prepend=-1)
    if (steps < 0).any() or (steps > 1).any() or item[:1].any() or (item[-1:] + 1 != items).any():
        return f"item does not ascend from 0 to {items - 1} in steps of 0 or 1"
    if items and not count:
        return "some items have no code"
    left, top, right, bottom = arrays["box"].T
    if (left > right).any() or (top > bottom).any():
        return "a box ends before it begins, expected left, top, right, bottom"
    return ""
