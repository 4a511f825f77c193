"""A finished run in memory: codes for photos, and the photos nearest to one."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mch_jax import batched
from mch_jax.data import photos
from mch_jax.encoder import Encoder
from mch_jax.files import codes_file
from mch_jax.index import BucketIndex

BATCH = 16  # photos encoded at a time; a single one has a shape of its own

Photo = str | os.PathLike[str] | Image.Image | np.ndarray


class Found(NamedTuple):
    """A photo of the database near a query.

    Attributes:
      id: its name.
      distance: bits between the query's code and the photo's nearest one.
      item: its row in `ids` of the codes file.
      box: left, top, right, bottom in pixels of the region whose code was nearest.
    """

    id: str
    distance: int
    item: int
    box: tuple[int, int, int, int]


class Retriever:
    """What `mch_jax.load` returns: the encoder of a run and its database.

    Attributes:
      workdir: of the run.
      encoder: photos to codes of six regions.
      database: the codes file that is searched, the run's own where no other was given.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], codes: str | os.PathLike[str] | None = None
    ):
        self.workdir = Path(workdir)
        self.encoder = Encoder.from_run(workdir)
        self.database = codes_file.load(codes or self.workdir / "codes" / "database.npz")
        if self.encoder.model.num_bits != self.database.num_bits:
            remedy = "expected codes of the same run" if codes else "run the encode stage again"
            raise ValueError(
                f"{workdir}: the encoder makes codes of {self.encoder.model.num_bits} bits, the "
                f"{'file' if codes else 'database'} has {self.database.num_bits}; {remedy}"
            )

    @functools.cached_property
    def index(self) -> BucketIndex:
        """The buckets of the database."""
        return BucketIndex.build(self.database.codes, self.database.item, self.database.num_bits)

    def __repr__(self) -> str:
        count, bits = len(self.database.ids), self.database.num_bits
        return f"Retriever('{self.workdir}': {count:,} photos, {bits} bits)"

    def encode(self, images: Photo | Iterable[Any]) -> UInt8[np.ndarray, "m bytes"]:
        """Returns the codes of whole photos, as `index.search` takes them.

        Args:
          images: one photo or several, each a path, a Pillow image or uint8 RGB [h w 3].

        Raises:
          ValueError: a photo cannot be read, or an array is no photo.
        """
        single = isinstance(images, str | os.PathLike | Image.Image)
        if single or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        squares = [photos.resize(pixels(x), self.encoder.image_size) for x in images]
        if not squares:
            return np.zeros((0, -(-self.database.num_bits // 8)), np.uint8)
        size = 1 if len(squares) == 1 else BATCH
        batches = map(np.stack, batched.split(squares, size))
        return batched.apply_all(self.encoder.encode, batches, size)

    def search(self, image: Photo, k: int = 10) -> list[Found]:
        """Returns the k nearest photos of the database, nearest first, fewer where it has fewer.

        Args:
          image: a path, a Pillow image or uint8 RGB [h w 3].
          k: how many, at least 1.

        Raises:
          ValueError: the photo cannot be read, or k is below 1.
        """
        code = self.encode(image)
        if len(code) != 1:
            raise ValueError(f"image is {len(code)} photos, expected one; encode takes several")
        hits = self.index.search(code, k)
        pairs = zip(hits.item[0].tolist(), hits.distance[0].tolist(), strict=True)
        return [self._found(code[0], item, distance) for item, distance in pairs if item >= 0]

    def _found(self, code: np.ndarray, item: int, distance: int) -> Found:
        file = self.database
        box = file.box[codes_file.nearest_row(file, item, code)].tolist()
        return Found(str(file.ids[item]), distance, item, tuple(box))


def pixels(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a photo as uint8 RGB, upright.

    Args:
      image: a path, a Pillow image or an array.

    Raises:
      ValueError: it cannot be read, or is none of these.
    """
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            return photos.decode(path.read_bytes(), str(path))
        except OSError as error:
            raise ValueError(f"'{path}' does not open: {error.strerror}") from None
    if isinstance(image, Image.Image):
        return photos.upright(image)
    is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size > 0
    if is_array and image.ndim == 3 and image.shape[2] == 3:
        return image
    came = f"{image.dtype} {list(image.shape)}" if hasattr(image, "shape") else type(image).__name__
    raise ValueError(f"a photo is {came}, expected a path, a Pillow image or uint8 [h, w, 3]")
