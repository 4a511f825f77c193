"""Random photos with damaged EXIF data and damaged bytes, in every format that is decoded.

`python tests/photo_fuzz.py 20000` decodes 20,000 of each format and prints what it found.
"""

import collections
import io
import random
import struct
import sys
import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from mch_jax.data import photos

# Tags that Pillow looks at: size, depth, strips, orientation, maker, resolution, IFDs below.
TAGS = (
    0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x010E, 0x010F, 0x0110, 0x0111, 0x0112, 0x0115, 0x0116,
    0x0117, 0x011A, 0x011B, 0x011C, 0x0128, 0x0131, 0x0132, 0x013D, 0x0140, 0x0142, 0x0144, 0x0145,
    0x014A, 0x0152, 0x0153, 0x0201, 0x0202, 0x0211, 0x02BC, 0x8298, 0x8769, 0x8773, 0x8825, 0x9000,
    0x9286, 0x927C, 0xA002, 0xA003, 0xA005, 0xC4A5,
)  # fmt: skip
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
MODES = {
    "JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "P", "LA", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"), "TIFF": ("RGB", "L", "P", "CMYK", "F", "I;16"), "GIF": ("P", "L"),
    "BMP": ("RGB", "P"), "PPM": ("RGB", "L"), "JPEG2000": ("RGB", "L"),
}  # fmt: skip


def _value(rng: random.Random, kind: int, count: int) -> bytes:
    if rng.random() < 0.3:
        return rng.randbytes(SIZES.get(kind, 4) * count)
    return (rng.randrange(10)).to_bytes(SIZES.get(kind, 4), "little") * count


def directory(rng: random.Random) -> bytes:
    """Returns EXIF data: a TIFF directory of random entries, an orientation among them."""
    order = rng.choice("<>") if rng.random() < 0.2 else "<"
    tags = [0x0112, *rng.choices(TAGS, k=rng.randrange(8))]
    entries, behind = b"", b""
    for tag in sorted(tags) if rng.random() < 0.8 else tags:
        plain = tag == 0x0112 and rng.random() < 0.6
        kind = 3 if plain else rng.choice((*SIZES, rng.randrange(256)))
        count = 1 if plain else rng.choice((0, 1, 1, 1, 2, 3, 9, rng.randrange(2**32)))
        value = _value(rng, kind, count) if count < 100 else b"few"
        if len(value) > 4:
            place = 8 + 2 + 12 * len(tags) + 4 + len(behind)
            behind += value
            wild = rng.random() < 0.15
            value = struct.pack(order + "L", rng.randrange(2**32) if wild else place)
        entries += struct.pack(order + "HHL", tag, kind, count) + value.ljust(4, b"\0")[:4]
    count = len(tags) if rng.random() < 0.9 else rng.randrange(2**16)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "LH", 8, count)
    following = rng.choice((0, 0, 0, 8, rng.randrange(2**32)))  # 8: a directory after itself
    return head + entries + struct.pack(order + "L", following) + behind


def _with_exif(kind: str, data: bytes, exif: bytes) -> bytes:
    """Returns a photo with EXIF data, which Pillow would not write if it is damaged."""
    if kind == "JPEG":
        segment = b"Exif\0\0" + exif
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    if kind == "PNG":
        chunk = b"eXIf" + exif
        return data[:33] + struct.pack(">L", len(exif)) + chunk + _crc(chunk) + data[33:]
    if kind == "TIFF":  # the entries become those of the image's own directory
        return exif + data
    return data


def _crc(chunk: bytes) -> bytes:
    import zlib

    return struct.pack(">L", zlib.crc32(chunk))


def _saved(rng: random.Random, kind: str) -> bytes:
    mode = rng.choice(MODES[kind])
    image = Image.frombytes("RGB", (12, 9), rng.randbytes(324))
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    options: dict = {}
    if kind == "JPEG" and rng.random() < 0.3:
        options["progressive"] = True
    if kind == "TIFF" and rng.random() < 0.5:
        options["compression"] = rng.choice(("tiff_lzw", "tiff_deflate", "packbits"))
    if kind in ("GIF", "WEBP", "TIFF") and rng.random() < 0.2:
        options |= {"save_all": True, "append_images": [image]}
    if kind == "WEBP" and rng.random() < 0.8:
        options["exif"] = b"Exif\0\0" + directory(rng)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _patched(rng: random.Random, data: bytes) -> bytes:
    """Returns a TIFF one of whose own entries has another type, count or value."""
    place, order = struct.unpack_from("<L", data, 4)[0], "<"
    if data[:2] != b"II" or place + 2 > len(data):
        return data
    number = struct.unpack_from("<H", data, place)[0]
    entry = place + 2 + 12 * rng.randrange(max(1, number))
    if entry + 12 > len(data):
        return data
    changed, field = bytearray(data), rng.randrange(3)
    value = rng.choice((0, 1, 2, 6, 255, 2**16 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)))
    if field == 0:
        struct.pack_into(order + "H", changed, entry + 2, rng.choice((*SIZES, 99)))
    else:
        struct.pack_into(order + "L", changed, entry + 4 * field, value)
    return bytes(changed)


def case(rng: random.Random, kind: str) -> bytes:
    """Returns one damaged photo of a format."""
    data = _saved(rng, kind)
    if kind in ("JPEG", "PNG") or (kind == "TIFF" and rng.random() < 0.2):
        data = _with_exif(kind, data, directory(rng))
    elif kind == "TIFF":
        for _ in range(rng.randrange(3)):
            data = _patched(rng, data)
    has_exif = kind in ("JPEG", "PNG", "WEBP", "TIFF")
    changed = bytearray(data)
    for _ in range(rng.randrange(3 if has_exif else 5)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    if rng.random() < 0.1:
        del changed[rng.randrange(len(changed)) :]
    return bytes(changed)


class Found(NamedTuple):
    """What decoding the cases of a format gave.

    Attributes:
      read: Number of photos that were read.
      reasons: The refusals and their numbers.
      slowest: Seconds of the slowest case.
      failures: Cases that raised something else than ValueError, with the error.
    """

    read: int
    reasons: collections.Counter[str]
    slowest: float
    failures: list[tuple[int, bytes, BaseException]]


def cases(kind: str, count: int) -> Iterator[tuple[int, bytes]]:
    for seed in range(count):
        yield seed, case(random.Random(f"{kind} {seed}"), kind)


def run(kind: str, count: int) -> Found:
    """Decodes the cases of a format."""
    read, reasons, slowest, failures = 0, collections.Counter(), 0.0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF data
        for seed, data in cases(kind, count):
            began = time.perf_counter()
            try:
                pixels = photos.decode(data, "a.jpg")
                assert pixels.ndim == 3  # noqa: PT017
                read += 1
            except ValueError as error:
                text = str(error)
                assert text.startswith("'a.jpg' does not decode: ")  # noqa: PT017
                assert "\n" not in text  # noqa: PT017
                reasons[type(error.__cause__).__name__] += 1
            except BaseException as error:  # noqa: BLE001 - that is what this looks for
                failures.append((seed, data, error))
            slowest = max(slowest, time.perf_counter() - began)
    return Found(read, reasons, slowest, failures)


if __name__ == "__main__":
    for name in photos.FORMATS:
        result = run(name, int(sys.argv[1]))
        print(  # noqa: T201
            f"{name}: {result.read:,} read, {sum(result.reasons.values()):,} refused "
            f"({dict(result.reasons.most_common())}), slowest {1000 * result.slowest:.0f} ms, "
            f"{len(result.failures)} other errors {[repr(x[2]) for x in result.failures[:3]]}"
        )
