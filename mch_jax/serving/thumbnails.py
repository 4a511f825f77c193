"""Thumbnails of photos."""

import collections
import io
import threading
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

MAX_BYTES = 64 * 2**20


class Thumbnails:
    """Makes JPEG thumbnails and keeps the most recently used ones, up to MAX_BYTES.

    May be used by several threads.
    """

    def __init__(self, read: Callable[[int], UInt8[np.ndarray, "h w 3"]]):
        """Creates thumbnails of what `read` returns for a photo's number."""
        self._read = read
        self._made: collections.OrderedDict[tuple[int, int], bytes] = collections.OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def jpeg(self, item: int, side: int) -> bytes:
        """Returns a photo as a JPEG whose longer side is at most `side` pixels.

        Raises:
          ValueError: The photo cannot be read.
        """
        key = (item, side)
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        image = Image.fromarray(self._read(item))
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=88)
        jpeg = stream.getvalue()
        with self._lock:
            if key not in self._made:
                self._made[key] = jpeg
                self._num_bytes += len(jpeg)
            while self._num_bytes > MAX_BYTES:
                self._num_bytes -= len(self._made.popitem(last=False)[1])
        return jpeg
