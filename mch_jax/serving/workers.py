"""The network of a service: photos of many requests, encoded in batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mch_jax.encoder import Encoder
from mch_jax.serving.batcher import Batcher


class Workers:
    """Two batchers over one encoder: whole photos for queries, six regions to look at.

    Args:
      encoder: of a run.
      on_batch: is told the kind and the size of each batch.
    """

    def __init__(self, encoder: Encoder, on_batch: Callable[[str, int], Any]):
        self._side = encoder.image_size
        self._whole = Batcher(
            lambda images: (encoder.encode(images),), on_batch=lambda n: on_batch("whole", n)
        )
        self._regions = Batcher(
            encoder.encode_regions, (1, 4), on_batch=lambda n: on_batch("regions", n)
        )

    def warm_up(self) -> None:
        """Compiles every program, so that no request waits for it."""
        image = np.zeros((self._side, self._side, 3), np.uint8)
        self._whole.warm_up(image)
        self._regions.warm_up(image)

    def start(self) -> None:
        """Starts to serve, in the running event loop."""
        self._whole.start()
        self._regions.start()

    async def stop(self) -> None:
        """Answers what has been submitted, then ends."""
        await self._whole.stop()
        await self._regions.stop()

    async def encode(self, image: UInt8[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "1 bytes"]:
        """Returns the code of a whole photo."""
        (code,) = await self._whole.submit(image)
        return code[None]

    async def encode_regions(
        self, image: UInt8[np.ndarray, "s s 3"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns packed codes [6 w] and keep probabilities [6] of a photo's regions."""
        packed, keep_prob = await self._regions.submit(image)
        return packed, keep_prob
