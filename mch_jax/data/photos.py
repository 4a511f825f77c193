"""Decoding of photos to RGB, from a file on disk or from a span of an archive."""

import contextlib
import io
import os
import pathlib
import re
import threading
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mch_jax.data.archives import Span, read_span
from mch_jax.files.regular import open_regular

# A photo with more pixels is refused before it is decoded: a small file can hold a huge image.
MAX_PIXELS = 80_000_000
MAX_FILE = 2**29  # bytes of a photo's file
_LONG = 2**24  # bytes; of longer files the header is read first
# Pillow supports further formats, some of which start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000")
# A scan of a progressive JPEG can take a few bytes and is decoded into the whole image: a small
# file could keep a core busy for minutes. Encoders write about ten scans.
MAX_SCANS = 100
# A marker that begins a segment with a length, or ends the file. In the data of a scan a byte 255
# is followed by 0 or by a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
# Bytes that are decoded at one time, in all threads. A larger photo is decoded alone.
MAX_BYTES = 2**30
# Bytes per pixel that decoders need beside the image: a JPEG of several scans keeps all
# coefficients, JPEG 2000 works on 32-bit integers, and WebP on whole frames with transparency.
_DECODER_BYTES = {"JPEG2000": 16, "WEBP": 8}
_SCANS_BYTES = 8
_STRIP = 2**20  # pixels that are converted to RGB at one time
# Bytes per value of Pillow's modes that have more than one.
_MODE_BYTES = {"I": 4, "F": 4, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}


def _rgb(image: Image.Image) -> Image.Image:
    """Returns an 8-bit RGB image. Transparency becomes white; 16-bit values lose their lower 8."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        values = values >> 8 if values.max(initial=0) > 255 else values
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _pixels(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the RGB pixels of an image. Large images are converted in strips, to save memory."""
    width, height = image.size
    if image.mode.startswith("I") or width * height <= _STRIP:  # I: shifted by its largest value
        return np.asarray(_rgb(image))
    pixels, rows = np.empty((height, width, 3), np.uint8), max(1, _STRIP // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(_rgb(image.crop((0, top, width, bottom))))
    return pixels


def upright(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the RGB pixels of an image, rotated according to its EXIF orientation.

    Raises:
      ValueError: The image does not decode, or its EXIF data is damaged.
    """
    try:
        return _pixels(ImageOps.exif_transpose(image))
    except Exception as error:  # noqa: BLE001 - a damaged photo can raise anything in Pillow
        raise ValueError(f"the image does not decode: {_reason(error)}") from error


def num_scans(data: bytes) -> int:
    """Returns the number of scans of a JPEG, from its markers; 0 for files of other formats.

    Nothing is decoded. Like decoders, it passes over bytes between segments that are no marker.
    """
    if not data.startswith(b"\xff\xd8"):
        return 0
    count, place = 0, 2
    while (found := _MARKER.search(data, place)) and (marker := data[found.end() - 1]) != 0xD9:
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
        count += marker == 0xDA
    return count


class _Budget:
    """Bytes that several threads share; a thread waits until there are enough for it."""

    def __init__(self, num_bytes: int):
        self._free = self._total = num_bytes
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def spend(self, num_bytes: int) -> Iterator[None]:
        """Takes a number of bytes, at most all, and returns them at the end."""
        num_bytes = min(num_bytes, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= num_bytes)
            self._free -= num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._free += num_bytes
                self._changed.notify_all()


_budget = _Budget(MAX_BYTES)


def num_bytes(image: Image.Image, scans: int = 0) -> int:
    """Returns the number of bytes that decoding an opened image takes at most, by its mode.

    Args:
      image: The image, whose header has been read.
      scans: The number of scans, if it is a JPEG.
    """
    bands = len(image.getbands())
    stored = _MODE_BYTES.get(image.mode, 1 if bands == 1 else 4)
    # Wide integers are converted at once; other images are turned, or converted in strips.
    converted = 3 * stored + 8 if image.mode.startswith("I") else max(stored, 3)
    decoder = _DECODER_BYTES.get(image.format or "", _SCANS_BYTES if scans > 1 else 0)
    pixels = image.width * image.height
    return pixels * (stored + converted + decoder) + min(pixels, _STRIP) * 16  # a strip's copies


def _reason(error: Exception) -> str:
    """Returns what an error of the decoder says, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"expected one of {', '.join(FORMATS)}"
    return " ".join(str(error).split()) or type(error).__name__


def _check_cost(image: Image.Image, data: bytes) -> int:
    """Returns the number of bytes that decoding an opened image takes.

    Raises:
      ValueError: Decoding takes more memory or time than is allowed.
    """
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ValueError(f"{pixels:,} pixels, at most {MAX_PIXELS:,} are decoded")
    allowed = MAX_PIXELS // _MODE_BYTES.get(image.mode, 1)
    if pixels > allowed:
        raise ValueError(
            f"{pixels:,} pixels of the mode {image.mode}, at most {allowed:,} of it are decoded"
        )
    scans = num_scans(data)
    if scans > MAX_SCANS:
        raise ValueError(f"{scans:,} scans of a JPEG, at most {MAX_SCANS} are decoded")
    return num_bytes(image, scans)


@contextlib.contextmanager
def _opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """Yields an image whose header has been read and that does not take too much to decode.

    Everything that the decoder raises in the block becomes a ValueError that names the photo.
    """
    try:
        with (
            Image.open(io.BytesIO(data), formats=FORMATS) as image,
            _budget.spend(_check_cost(image, data)),
        ):
            yield image
    except Exception as error:  # noqa: BLE001 - a damaged photo can raise anything in Pillow
        raise ValueError(f"'{name}' does not decode: {_reason(error)}") from error


def decode(data: bytes, name: str = "photo") -> UInt8[np.ndarray, "h w 3"]:
    """Decodes the bytes of an image file to RGB, rotated according to its EXIF orientation.

    Args:
      data: The bytes of a file in one of FORMATS.
      name: Name of the file for error messages.

    Returns:
      The pixels.

    Raises:
      ValueError: The bytes are not a whole image, or decoding it would take too much: it has more
        than MAX_PIXELS pixels, fewer for modes of several bytes, or more than MAX_SCANS scans.
    """
    with _opened(data, name) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _pixels(image)


def decode_small(data: bytes, side: int, name: str = "photo") -> UInt8[np.ndarray, "h w 3"]:
    """Decodes the bytes of an image file to a small RGB image, such as a thumbnail.

    A large JPEG is decoded at a fraction of its size, which takes a fraction of the time.

    Args:
      data: The bytes of a file in one of FORMATS.
      side: Largest width and height of the result. The aspect ratio is kept, and a smaller photo
        keeps its size.
      name: Name of the file for error messages.

    Returns:
      The pixels, rotated according to the EXIF orientation.

    Raises:
      ValueError: As `decode`.
    """
    with _opened(data, name) as image:
        image.draft("RGB", (side, side))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        small = Image.fromarray(_pixels(image))
        small.thumbnail((side, side), Image.Resampling.BILINEAR)
        return np.asarray(small)


def decode_grey(
    data: bytes, side: int, name: str = "photo"
) -> tuple[UInt8[np.ndarray, "s s"], tuple[int, int]]:
    """Decodes the bytes of an image file to a small grey square.

    A JPEG is decoded at a fraction of its size, which takes a fraction of the time. The pixels can
    therefore differ a little from those of a photo that is decoded and then resized.

    Args:
      data: The bytes of a file in one of FORMATS.
      side: Width and height of the result. The aspect ratio is not kept.
      name: Name of the file for error messages.

    Returns:
      The pixels, and the width and height of the whole photo. Both are those after the rotation
      according to the EXIF orientation.

    Raises:
      ValueError: As `decode`.
    """
    with _opened(data, name) as image:
        width, height = image.size
        image.draft("L", (2 * side, 2 * side))
        image.load()
        before = image.size
        ImageOps.exif_transpose(image, in_place=True)
        if image.size != before:
            width, height = height, width
        grey = image if image.mode == "L" else Image.fromarray(_pixels(image)).convert("L")
        small = grey.resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(small), (width, height)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a photo's file.

    Only the header of a long file is read at first, so that holes and other data of many gigabytes
    do not fill the memory.

    Raises:
      OSError: The file does not open.
      ValueError: The file is a pipe or a device, is too long, or a long one of another kind.
    """
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_FILE:
            raise ValueError(f"it has {size:,} bytes, expected at most {MAX_FILE:,}")
        if size > _LONG:
            try:
                Image.open(stream, formats=FORMATS)
            except Exception:  # noqa: BLE001 - a damaged photo can raise anything in Pillow
                raise ValueError(
                    f"it has {size:,} bytes and is none of {', '.join(FORMATS)}"
                ) from None
            stream.seek(0)
        return stream.read(size)


def file_bytes(root: pathlib.Path, names: np.ndarray, row: int) -> bytes:
    """Returns the bytes of the photo whose path below `root` is `names[row]`.

    Raises:
      ValueError: The file does not open.
    """
    name = str(names[row])
    try:
        return read_bytes(root / name)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"'{name}' does not open: {reason}") from error


def read_file(root: pathlib.Path, names: np.ndarray, row: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes the photo whose path below `root` is `names[row]`.

    Raises:
      ValueError: The file does not open or does not decode.
    """
    return decode(file_bytes(root, names, row), str(names[row]))


def found_bytes(
    root: pathlib.Path,
    archives: Sequence[pathlib.Path],
    paths: np.ndarray,
    spans: Int64[np.ndarray, "n 4"],
    row: int,
) -> bytes:
    """Returns the bytes of one of the photos that `archives.Files.find_all` found.

    Args:
      root: The folder that paths of files on disk are relative to.
      archives: The archives that spans refer to.
      paths: Path of each photo in its archive or below the root.
      spans: `archives.Span` of each photo.
      row: Which photo to read.

    Raises:
      ValueError: The photo does not open.
    """
    span = Span(*spans[row].tolist())
    if span.archive < 0:
        return file_bytes(root, paths, row)
    return read_span(archives[span.archive], span, str(paths[row]), MAX_FILE)


def read_found(
    root: pathlib.Path,
    archives: Sequence[pathlib.Path],
    paths: np.ndarray,
    spans: Int64[np.ndarray, "n 4"],
    row: int,
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes the photo that `found_bytes` reads.

    Raises:
      ValueError: The photo does not open or does not decode.
    """
    return decode(found_bytes(root, archives, paths, spans, row), str(paths[row]))


def resize(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Resizes an image to a square with Pillow's antialiased bilinear filter.

    The aspect ratio is not kept.
    """
    if image.shape[:2] == (size, size):
        return image
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)
