"""Uploaded photos: the bytes in a request's body, and the pixels that they decode to."""

import io
import re
from typing import Any

import numpy as np
from fastapi import Request
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from starlette.datastructures import UploadFile

from mch_jax.data import photos
from mch_jax.serving.gate import Refused

MAX_OTHER_FIELDS = 8  # of a form, besides the photo

# How /openapi.json describes a body with a photo.
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "a photo: JPEG, PNG, WebP, GIF, TIFF, BMP, PPM or JPEG 2000; a form may "
        f"have {MAX_OTHER_FIELDS} other fields, which are ignored",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["photo"],
                    "properties": {"photo": BINARY["schema"]},
                }
            },
            "image/*": BINARY,
            "application/octet-stream": BINARY,
        },
    }
}


async def read(request: Request) -> bytes:
    """Returns the bytes of the photo in a request.

    The photo is either the field `photo` of a form or the whole body. The file name in a form is
    not used; a name that contains a path or a control character is refused.

    Raises:
      Refused: The request contains no photo.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=MAX_OTHER_FIELDS) as form:
            file = form.get("photo")
            if not isinstance(file, UploadFile):
                raise Refused(422, "The form has no file in its field 'photo'.")
            if re.search(r"[/\\\x00-\x1f\x7f]", file.filename or ""):
                raise Refused(
                    422,
                    "The photo's file name holds a path or a control character; send a bare name.",
                )
            body = await file.read()
    elif kind.startswith("image/") or kind == "application/octet-stream":
        body = await request.body()
    else:
        raise Refused(
            415,
            "Send the photo as multipart/form-data in the field 'photo', or as the body with its "
            "own type, such as image/jpeg.",
        )
    if not body:
        raise Refused(422, "The photo is empty.")
    return body


def decode(body: bytes, max_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of an uploaded photo, turned upright by its EXIF orientation.

    Args:
      body: The bytes of the photo's file.
      max_pixels: The largest number of pixels that is accepted.

    Raises:
      Refused: The photo is of an unknown type, too large or damaged.
    """
    too_many = Refused(413, f"The photo has too many pixels; at most {max_pixels:,} are accepted.")
    try:
        with Image.open(io.BytesIO(body), formats=photos.FORMATS) as image:
            pixels = image.width * image.height
    except UnidentifiedImageError:
        raise Refused(
            415, f"The upload is not a photo of a known type ({', '.join(photos.FORMATS)})."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_many from None
    except Exception:  # noqa: BLE001 - a damaged photo can raise anything in Pillow
        raise Refused(422, "The photo is damaged: its header cannot be read.") from None
    if pixels > max_pixels:
        raise too_many
    try:
        return photos.decode(body, "photo")
    except ValueError:
        raise Refused(422, "The photo is damaged or cut off and does not decode.") from None
