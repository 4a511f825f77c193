"""Codes and items in the files of other programs: FAISS, NumPy, Parquet and Lance.

A file of FAISS is read and written without FAISS. Only the two plain kinds are known:
`IndexBinaryFlat`, which has codes alone, and `IndexBinaryIDMap` around one, which also has an
integer for each code, here its item. The format is little-endian:

| bytes | what |
| --- | --- |
| 4 | `IBxF`; `IBMp` with integers, followed by the same header, the flat index, and the integers |
| 4 | int32, number of bits, a multiple of 8 |
| 4 | int32, bytes per code |
| 8 | int64, number of codes |
| 1, 4 | whether the index is trained, 1; its metric, 1 |
| 8, then all | uint64, number of bytes of the codes, and the codes |

This module does not import JAX.
"""

import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from mch_jax.files import processes
from mch_jax.files.codes_file import CodeFile
from mch_jax.files.regular import Refused, open_regular
from mch_jax.files.whole import first_line, whole_file

_HEADER = struct.Struct("<4siiqBi")
_SIZE = struct.Struct("<Q")


class Packed(NamedTuple):
    """Packed codes and the items that they belong to.

    Attributes:
      codes: Bit i of a code is bit i % 8 of byte i // 8.
      item: The item of each code, in any order.
      num_bits: Length of a code in bits. Files of FAISS and NumPy hold whole bytes, so that it is a
        multiple of 8 there.
    """

    codes: UInt8[np.ndarray, "c bytes"]
    item: Int[np.ndarray, " c"]
    num_bits: int


def save(path: str | os.PathLike[str], file: CodeFile) -> None:
    """Writes the codes of a codes file for another program, completely or not at all.

    The ending of the path decides the format. `.faiss` is an `IndexBinaryIDMap` whose integers are
    the items; an item with several codes can then come several times in an answer of FAISS. `.npy`
    has the codes alone, uint8 [c, bytes], in the order of the codes file. `.parquet` has a row per
    code with the columns `id`, `item`, `code`, `keep_prob`, `left`, `top`, `right` and `bottom`,
    and needs `pyarrow`. `.lance` is the same table as a directory of Lance, and needs `pylance`; a
    table that is there already gets a new version.

    Args:
      path: Path of the file.
      file: The codes, for instance of `codes_file.load`.

    Raises:
      ValueError: The ending is none of these, or `pyarrow` or `pylance` is not installed.
    """
    writers = {".faiss": _save_faiss, ".npy": _save_npy, ".parquet": _save_parquet}
    ending = _ending(path)
    if ending == ".lance":  # not a file; Lance shows a new version only when it is complete
        if processes.is_writer():
            _save_lance(Path(path), file)
        return
    with whole_file(path) as temporary:
        writers[ending](temporary, file)


def load(path: str | os.PathLike[str]) -> Packed:
    """Returns the codes of a file of another program.

    Args:
      path: `.faiss`, `.npy`, `.parquet` or `.lance`, as `save` writes them. A flat index of FAISS
        and an .npy file have no items, so that each code is an item of its own. A table of Parquet
        or Lance needs the column `code`, binary or lists of uint8 with equal lengths, and may have
        `item`; the number of bits is in its metadata as `num_bits`, and 8 per byte otherwise.

    Raises:
      ValueError: The file is missing, damaged or of another kind, or `pyarrow` or `pylance` is not
        installed.
    """
    readers = {
        ".faiss": _load_faiss,
        ".npy": _load_npy,
        ".parquet": _load_parquet,
        ".lance": _load_lance,
    }
    read = readers[_ending(path)]
    try:
        return read(Path(path))
    except ModuleNotFoundError as error:
        raise ValueError(_missing(path)) from error
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        reason = getattr(error, "strerror", None) or first_line(error)
    raise ValueError(f"{path} has no codes that can be read: {reason}; expected {_EXPECTED}")


_EXPECTED = (
    "an IndexBinaryFlat or IndexBinaryIDMap of FAISS (.faiss), uint8 [n, bytes] (.npy), or a table "
    "with a binary column 'code' (.parquet, .lance)"
)


def _ending(path: str | os.PathLike[str]) -> str:
    """Returns the ending of a path that names a known format."""
    ending = Path(path).suffix.lower()
    if ending not in (".faiss", ".npy", ".parquet", ".lance"):
        raise ValueError(f"{path} ends with {ending!r}, expected .faiss, .npy, .parquet or .lance")
    return ending


def _missing(path: str | os.PathLike[str]) -> str:
    package = "pylance" if Path(path).suffix.lower() == ".lance" else "pyarrow"
    return f"{path} needs the package {package}; install it, or use .npy or .faiss"


def _save_faiss(path: Path, file: CodeFile) -> None:
    count, width = file.codes.shape
    bits = 8 * width
    with open(path, "wb") as stream:
        for kind in (b"IBMp", b"IBxF"):
            stream.write(_HEADER.pack(kind, bits, width, count, 1, 1))
        stream.write(_SIZE.pack(count * width))
        stream.write(np.ascontiguousarray(file.codes).data)
        stream.write(_SIZE.pack(count))
        stream.write(np.ascontiguousarray(file.item, "<i8").data)


def _load_faiss(path: Path) -> Packed:
    with open_regular(path) as stream:
        left = os.fstat(stream.fileno()).st_size

        def take(size: int) -> bytes:
            nonlocal left
            if size > left:
                raise Refused("it ends too early")
            left -= size
            return stream.read(size)

        kind, *header = _HEADER.unpack(take(_HEADER.size))
        has_items = kind == b"IBMp"
        if has_items:
            kind, *inner = _HEADER.unpack(take(_HEADER.size))
            if inner[:3] != header[:3]:
                raise Refused("its two headers differ")
        if kind != b"IBxF":
            raise Refused(f"it is an index of the kind {kind!r}")
        bits, width, count = header[:3]
        if width < 1 or bits != 8 * width or count < 0:
            raise Refused(f"{bits} bits, {width} bytes per code and {count} codes do not fit")
        if _SIZE.unpack(take(_SIZE.size))[0] != count * width:
            raise Refused("the length of its codes does not fit its header")
        codes = np.frombuffer(take(count * width), np.uint8).reshape(count, width)
        item = np.arange(count)
        if has_items:
            if _SIZE.unpack(take(_SIZE.size))[0] != count:
                raise Refused("it does not have one integer per code")
            item = np.frombuffer(take(8 * count), "<i8").astype(np.int64)
        if left:
            raise Refused(f"{left} bytes follow its end")
    return Packed(codes, item, bits)


def _save_npy(path: Path, file: CodeFile) -> None:
    np.save(path, np.ascontiguousarray(file.codes), allow_pickle=False)


def _load_npy(path: Path) -> Packed:
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        major = np.lib.format.read_magic(stream)[0]
        read = (
            np.lib.format.read_array_header_1_0
            if major == 1
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(stream)
        if dtype != np.uint8 or len(shape) != 2 or fortran:
            raise Refused(f"it is {dtype} {list(shape)}")
        if shape[0] * shape[1] != size - stream.tell() or not shape[1]:
            raise Refused("its length does not fit its header")
        codes = np.frombuffer(stream.read(), np.uint8).reshape(shape)
    return Packed(codes, np.arange(len(codes)), 8 * codes.shape[1])


def _table(file: CodeFile) -> Any:
    """Returns the codes as a table of Arrow."""
    import pyarrow as pa

    count, width = file.codes.shape
    codes = np.ascontiguousarray(file.codes)
    columns = {
        "id": pa.array(file.ids[file.item].tolist(), pa.string()),
        "item": pa.array(file.item),
        "code": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), count, [None, pa.py_buffer(codes)]
        ),
        "keep_prob": pa.array(file.keep_prob),
    }
    for name, side in zip(("left", "top", "right", "bottom"), file.box.T, strict=True):
        columns[name] = pa.array(np.ascontiguousarray(side))
    return pa.table(columns).replace_schema_metadata({"num_bits": str(file.num_bits)})


def _packed(table: Any) -> Packed:
    """Returns the codes of a table of Arrow."""
    values = table.column("code").to_pylist()
    values = [bytes(code) if isinstance(code, list) else code for code in values]
    widths = {len(code) for code in values}
    if len(widths) != 1 or 0 in widths:
        raise Refused("the values of its column 'code' do not have one length")
    codes = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)
    item = np.arange(len(codes))
    if "item" in table.column_names:
        item = table.column("item").to_numpy().astype(np.int64, casting="safe")
    num_bits = int((table.schema.metadata or {}).get(b"num_bits", 8 * codes.shape[1]))
    if not 8 * (codes.shape[1] - 1) < num_bits <= 8 * codes.shape[1]:
        raise Refused(f"num_bits is {num_bits} for codes of {codes.shape[1]} bytes")
    return Packed(codes, item, num_bits)


def _save_parquet(path: Path, file: CodeFile) -> None:
    try:
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ValueError(_missing(path)) from error
    pq.write_table(_table(file), path)


def _load_parquet(path: Path) -> Packed:
    import pyarrow.parquet as pq

    return _packed(pq.read_table(path))


def _save_lance(path: Path, file: CodeFile) -> None:
    try:
        import lance  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError(_missing(path)) from error
    lance.write_dataset(_table(file), str(path), mode="overwrite")


def _load_lance(path: Path) -> Packed:
    import lance  # pyright: ignore[reportMissingImports]

    return _packed(lance.dataset(str(path)).to_table())
