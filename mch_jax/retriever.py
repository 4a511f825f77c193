"""A finished run in memory: encodes photos, and finds the photos that are nearest to one."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mch_jax import batched
from mch_jax import query_codes as regions
from mch_jax.backbones import Given
from mch_jax.data import photos
from mch_jax.database import Database
from mch_jax.encoder import FILE, Encoder
from mch_jax.index import BucketIndex

BATCH_SIZE = 16  # several photos are encoded in batches of this size; one photo is encoded alone

Photo = str | os.PathLike[str] | Image.Image | np.ndarray


class Found(NamedTuple):
    """A photo of the database that is near the query.

    Attributes:
      id: The photo's name.
      distance: Hamming distance in bits between the query's code and the photo's nearest code.
      item: The photo's row in `ids` of the codes file.
      box: The region whose code is the nearest: left, top, right, bottom in pixels.
    """

    id: str
    distance: int
    item: int
    box: tuple[int, int, int, int]


class Retriever:
    """The encoder of a finished run and a database of codes; `mch_jax.load` returns one.

    Attributes:
      workdir: The workdir of the run.
      encoder: Maps photos to the codes of their six regions.
      database: The database to search, with the arrays of its codes file.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        database: str | os.PathLike[str] | None = None,
        backbone: Given = None,
    ):
        """Loads a finished run.

        Args:
          workdir: The workdir of the run.
          database: A codes file to search instead of the run's database.
          backbone: The run's backbone, as `Encoder.from_run` takes it.

        Raises:
          ValueError: A file is missing or damaged, the codes are of another length, or the backbone
            cannot be opened.
        """
        self.workdir = Path(workdir)
        self.encoder = Encoder.from_run(workdir, backbone)
        self.database = Database.open(database or self.workdir / "codes" / "database.npz")
        self.database.check_num_bits(self.encoder.model.num_bits, self.workdir / FILE)

    @property
    def index(self) -> BucketIndex:
        """The index of the database's codes."""
        return self.database.index

    def __repr__(self) -> str:
        count, num_bits = len(self.database), self.database.num_bits
        return f"Retriever('{self.workdir}': {count:,} photos, {num_bits} bits)"

    def encode(self, images: Photo | Iterable[Any]) -> UInt8[np.ndarray, "m bytes"]:
        """Returns the codes of whole photos, in the form that `index.search` takes.

        Args:
          images: One photo or several, each a path, a Pillow image or uint8 RGB [h w 3].

        Raises:
          ValueError: A photo cannot be read, or an array is not a photo.
        """
        single = isinstance(images, str | os.PathLike | Image.Image)
        if single or (isinstance(images, np.ndarray) and images.ndim == 3):
            images = [images]
        resized = [photos.resize(pixels(x), self.encoder.image_size) for x in images]
        if not resized:
            return np.zeros((0, -(-self.database.num_bits // 8)), np.uint8)
        size = 1 if len(resized) == 1 else BATCH_SIZE
        batches = map(np.stack, batched.split(resized, size))
        return batched.apply_all(self.encoder.encode, batches, size)

    def search(self, image: Photo, k: int = 10, query_codes: str = "one") -> list[Found]:
        """Returns the k nearest photos of the database, nearest first.

        Photos at equal distance come by the query's logits: by ascending asymmetric distance. A
        photo of the database, recognised by its name, comes first among its own answers.

        Args:
          image: A path, a Pillow image or uint8 RGB [h w 3].
          k: The number of photos, at least 1; fewer are returned if the database has fewer.
          query_codes: Codes of the photo to search with: `one` is the whole photo's, `agent` those
            that the agent keeps, `all` those of all six regions.

        Raises:
          ValueError: The photo cannot be read, k is below 1, or there are no such query codes.
        """
        regions.check(query_codes, "query_codes")
        if isinstance(image, np.ndarray) and image.ndim == 4:
            if len(image) != 1:
                raise ValueError(
                    f"image is {len(image)} photos, expected one; encode takes several"
                )
            image = image[0]
        resized = photos.resize(pixels(image), self.encoder.image_size)
        query = self.encoder.query(resized[None], query_codes)
        itself = self.database.item_of(image) if isinstance(image, str | os.PathLike) else None
        neighbours, _ = self.database.search(
            query.codes[0], k, margins=query.margins[0], first=itself
        )
        ids, box = self.database.ids, self.database.box
        return [
            Found(str(ids[item]), distance, item, tuple(box[row].tolist()))
            for item, distance, row in neighbours
        ]


def pixels(image: Any) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a photo as uint8 RGB, turned upright by its EXIF orientation.

    Args:
      image: A path, a Pillow image or uint8 RGB [h w 3], which is returned as it is.

    Raises:
      ValueError: The photo cannot be read, or the argument is none of these.
    """
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            data = photos.read_bytes(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"'{path}' does not open: {reason}") from None
        return photos.decode(data, str(path))
    if isinstance(image, Image.Image):
        return photos.upright(image)
    is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size > 0
    if is_array and image.ndim == 3 and image.shape[2] == 3:
        return image
    came = f"{image.dtype} {list(image.shape)}" if hasattr(image, "shape") else type(image).__name__
    raise ValueError(f"a photo is {came}, expected a path, a Pillow image or uint8 [h, w, 3]")
