"""The network of a service, which encodes the photos of many requests in batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8, UInt32

from mch_jax.encoder import Encoder, RegionOutputs
from mch_jax.query_codes import QueryRegions
from mch_jax.serving.batcher import Batcher


class Workers:
    """Two batchers that share an encoder: one for whole photos, one for the six regions.

    Args:
      encoder: The encoder of a run.
      on_batch: Called with the kind, "whole" or "regions", and the size of each batch.
    """

    def __init__(self, encoder: Encoder, on_batch: Callable[[str, int], Any]):
        self._side, self._encoder = encoder.image_size, encoder
        self._whole = Batcher(
            lambda images: encoder.query(images), on_batch=lambda n: on_batch("whole", n)
        )
        self._regions = Batcher(
            encoder.region_outputs, (1, 4), on_batch=lambda n: on_batch("regions", n)
        )

    def warm_up(self) -> None:
        """Compiles every program, so that no request waits for it."""
        image = np.zeros((self._side, self._side, 3), np.uint8)
        self._whole.warm_up(image)
        self._regions.warm_up(image)

    def start(self) -> None:
        """Starts to encode photos, in the running event loop."""
        self._whole.start()
        self._regions.start()

    async def stop(self) -> None:
        """Encodes the photos that were submitted, then stops."""
        await self._whole.stop()
        await self._regions.stop()

    async def query(self, image: UInt8[np.ndarray, "s s 3"], choice: str) -> QueryRegions:
        """Returns the codes and logits of one photo as a query.

        Args:
          image: The photo at the encoder's size.
          choice: Which codes the query has: `one`, `agent` or `all`.
        """
        if choice == "one":
            return QueryRegions(*(x[None] for x in await self._whole.submit(image)))
        outputs = RegionOutputs(*(x[None] for x in await self._regions.submit(image)))
        return self._encoder.query_regions(outputs).chosen(choice)

    async def encode_regions(
        self, image: UInt8[np.ndarray, "s s 3"]
    ) -> tuple[UInt32[np.ndarray, "6 w"], Float[np.ndarray, " 6"]]:
        """Returns the packed codes of a photo's regions and the probabilities of keeping them."""
        outputs = RegionOutputs(*await self._regions.submit(image))
        return outputs.packed, outputs.keep_prob
