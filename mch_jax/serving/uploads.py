"""Uploaded photos: the bytes of a photo in a request's body."""

import re
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from mch_jax.serving.limits import Refused

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
        # Not request.body(), which keeps the bytes until the answer has been sent.
        body = b"".join([chunk async for chunk in request.stream()])
    else:
        raise Refused(
            415,
            "Send the photo as multipart/form-data in the field 'photo', or as the body with its "
            "own type, such as image/jpeg.",
        )
    if not body:
        raise Refused(422, "The photo is empty.")
    return body
