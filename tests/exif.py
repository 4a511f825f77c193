"""Writes EXIF data and TIFF files entry by entry, also those that no library would write."""

import struct

ORIENTATION, MAKE = 0x0112, 0x010F
SHORT, LONG, RATIONAL = 3, 4, 5

Entry = tuple[int, int, int, bytes]  # tag, type, count, bytes of the value


def directory(entries: list[Entry], data: bytes = b"") -> bytes:
    """Returns a little-endian TIFF of one directory, followed by data.

    A value of more than four bytes is stored between the directory and the data.
    """
    place = 8 + 2 + 12 * len(entries) + 4
    head, behind = struct.pack("<2sHLH", b"II", 42, 8, len(entries)), b""
    for tag, kind, count, value in entries:
        if len(value) > 4:
            stored = struct.pack("<L", place + len(behind))
            behind += value + b"\0" * (len(value) % 2)
        else:
            stored = value.ljust(4, b"\0")
        head += struct.pack("<HHL", tag, kind, count) + stored
    return head + bytes(4) + behind + data


def short(tag: int, value: int) -> Entry:
    return tag, SHORT, 1, struct.pack("<H", value)


def exif(entries: list[Entry]) -> bytes:
    """Returns EXIF data as Pillow's `save` takes it."""
    return b"Exif\0\0" + directory(entries)


def tiff(entries: list[Entry], width: int = 9, height: int = 6) -> bytes:
    """Returns an uncompressed grey TIFF with further entries; a later one replaces an earlier."""
    pixels = bytes(range(width * height))
    known = {
        0x0100: short(0x0100, width), 0x0101: short(0x0101, height), 0x0102: short(0x0102, 8),
        0x0103: short(0x0103, 1), 0x0106: short(0x0106, 1), 0x0115: short(0x0115, 1),
        0x0116: short(0x0116, height),
        0x0117: (0x0117, LONG, 1, struct.pack("<L", len(pixels))),
        0x0111: (0x0111, LONG, 1, bytes(4)),
    }  # fmt: skip
    known |= {entry[0]: entry for entry in entries}
    if 0x0111 not in {entry[0] for entry in entries}:
        place = len(directory(list(known.values())))
        known[0x0111] = (0x0111, LONG, 1, struct.pack("<L", place))
    return directory([known[tag] for tag in sorted(known)], pixels)


# A photo to be turned whose maker is a number instead of a text: Pillow cannot write it again.
TURNED = [short(ORIENTATION, 6), (MAKE, RATIONAL, 1, struct.pack("<LL", 1, 2))]
