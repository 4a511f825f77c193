"""Photos: their files' bytes, from a folder or straight from an archive, to RGB."""

import io
import pathlib
import struct
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from mch_jax.data.archives import read_member

# A photo with more pixels is refused before it is decoded: a small file can hold a huge image.
MAX_PIXELS = 80_000_000
# Pillow knows more, some of which start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000")
# What Pillow's readers raise for files that are cut off, scrambled or too large.
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
    Image.DecompressionBombWarning,  # where warnings are errors
)


def _rgb(image: Image.Image) -> Image.Image:
    """Returns an 8-bit RGB image; transparency is laid on white, 16 bits lose the lower 8."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        values = values >> 8 if values.max(initial=0) > 255 else values
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def upright(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an opened image as RGB, turned by its EXIF orientation."""
    return np.asarray(_rgb(ImageOps.exif_transpose(image)))


def decode(data: bytes, name: str = "photo") -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an image file's bytes to RGB, turned upright by its EXIF orientation.

    Args:
      data: the file's bytes, in one of FORMATS.
      name: what the error calls the file.

    Returns:
      The pixels.

    Raises:
      ValueError: the bytes are no whole image, or it has more than MAX_PIXELS pixels.
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


def read_file(root: pathlib.Path, ids: np.ndarray, row: int) -> np.ndarray:
    """Decodes the photo of one row from its file below `root`."""
    name = str(ids[row])
    try:
        data = (root / name).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"'{name}' does not open: {reason}") from error
    return decode(data, name)


def read_place(
    archives: Sequence[pathlib.Path],
    paths: np.ndarray,
    places: Int64[np.ndarray, "n 4"],
    root: pathlib.Path,
    row: int,
) -> np.ndarray:
    """Decodes the photo of one row from where `archives.Files` found it."""
    archive, *place = places[row].tolist()
    if archive < 0:
        return read_file(root, paths, row)
    name = str(paths[row])
    return decode(read_member(archives[archive], *place, name), name)


def resize(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """Squashes a photo to a square with Pillow's antialiased bilinear filter."""
    if image.shape[:2] == (size, size):
        return image
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)
