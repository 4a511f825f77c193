"""Decoding of photos to RGB, from a file on disk or from a span of an archive."""

import io
import pathlib
import struct
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mch_jax.data.archives import Span, read_span

# A photo with more pixels is refused before it is decoded: a small file can hold a huge image.
MAX_PIXELS = 80_000_000
# Pillow supports further formats, some of which start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000")
# The errors that Pillow raises for files that are cut off, scrambled or too large.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # if warnings are errors
)


def _rgb(image: Image.Image) -> Image.Image:
    """Returns an 8-bit RGB image. Transparency becomes white; 16-bit values lose their lower 8."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        values = values >> 8 if values.max(initial=0) > 255 else values
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def upright(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the RGB pixels of an opened image, rotated according to its EXIF orientation."""
    return np.asarray(_rgb(ImageOps.exif_transpose(image)))


def decode(data: bytes, name: str = "photo") -> UInt8[np.ndarray, "h w 3"]:
    """Decodes the bytes of an image file to RGB, rotated according to its EXIF orientation.

    Args:
      data: The bytes of a file in one of FORMATS.
      name: Name of the file for error messages.

    Returns:
      The pixels.

    Raises:
      ValueError: The bytes are not a whole image, or it has more than MAX_PIXELS pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise ValueError(f"{pixels:,} pixels, at most {MAX_PIXELS:,} are decoded")
            image.load()
            return upright(image)
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"expected one of {', '.join(FORMATS)}"
        raise ValueError(f"'{name}' does not decode: {reason}") from error


def read_file(root: pathlib.Path, names: np.ndarray, row: int) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes the photo whose path below `root` is `names[row]`.

    Raises:
      ValueError: The file does not open or does not decode.
    """
    name = str(names[row])
    try:
        data = (root / name).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"'{name}' does not open: {reason}") from error
    return decode(data, name)


def read_found(
    root: pathlib.Path,
    archives: Sequence[pathlib.Path],
    paths: np.ndarray,
    spans: Int64[np.ndarray, "n 4"],
    row: int,
) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes one of the photos that `archives.Files.find_all` found.

    Args:
      root: The folder that paths of files on disk are relative to.
      archives: The archives that spans refer to.
      paths: Path of each photo in its archive or below the root.
      spans: `archives.Span` of each photo.
      row: Which photo to decode.

    Raises:
      ValueError: The photo does not open or does not decode.
    """
    span, name = Span(*spans[row].tolist()), str(paths[row])
    if span.archive < 0:
        return read_file(root, paths, row)
    return decode(read_span(archives[span.archive], span, name), name)


def resize(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Resizes an image to a square with Pillow's antialiased bilinear filter.

    The aspect ratio is not kept.
    """
    if image.shape[:2] == (size, size):
        return image
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)
