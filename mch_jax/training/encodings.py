"""Encodings of photos by a base model of the run, on the host."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt32

from mch_jax import batched, codes, data, models, regions
from mch_jax.regions import NUM_REGIONS
from mch_jax.training.run import Run

_crop = jax.jit(regions.crop, static_argnums=2)


class RegionEncodings(NamedTuple):
    """What a base model computes for the regions of photos, the whole photo first.

    Attributes:
      packed: Packed codes.
      logits: Logits of the hash layer.
      label_logits: Logits of the label head.
    """

    packed: UInt32[np.ndarray, "n t w"]
    logits: Float[np.ndarray, "n t q"]
    label_logits: Float[np.ndarray, "n t c"]


def whole(run: Run, params: Mapping[str, Any], positions: Int[np.ndarray, " n"] | None = None):
    """Returns the encodings of whole training photos.

    Args:
      run: The run.
      params: Parameters of the base model.
      positions: Positions of the photos in the training set. Defaults to all of them.
    """
    positions = np.arange(len(run.dataset.train)) if positions is None else positions
    size = run.config.encode.batch_size * NUM_REGIONS
    encode = jax.jit(lambda params, batch: models.encode(run.model, params, batch))
    params = jax.device_put(jax.device_get(run.needed_params(params)))

    def encode_whole(batch):
        if "image" in batch:
            box = jnp.tile(jnp.asarray(regions.WHOLE)[None], (size, 1))
            batch = {"image": _crop(batch["image"], box, run.config.model.input_size)}
        return encode(params, batch)

    return batched.apply_all(encode_whole, _whole_batches(run, positions, size), size)


def _whole_batches(
    run: Run, positions: Int[np.ndarray, " n"], size: int
) -> Iterator[dict[str, np.ndarray]]:
    config = run.config
    if config.base.train_conv:
        rows = run.dataset.train[positions]
        for batch in data.epoch(run.dataset, rows, config.dataset.image_size, size):
            yield {"image": batch["image"]}
    else:
        for part in batched.split(positions, size):
            yield {"conv": run.train_views[part, 0]}


def of_regions(
    run: Run,
    params: Mapping[str, Any],
    rows: Int[np.ndarray, " n"],
    num_regions: int = NUM_REGIONS,
) -> RegionEncodings:
    """Returns the encodings of the first `num_regions` regions of photos.

    Args:
      run: The run.
      params: Parameters of the base model.
      rows: Rows of the photos in the data set.
      num_regions: Number of regions, the whole photo included.
    """
    boxes = regions.region_boxes(run.config.encode.crop_ratio)[:num_regions]

    @jax.jit
    def encode(params, batch):
        encoding = models.encode_regions(
            run.model, params, batch, boxes, run.config.model.input_size
        )
        packed = codes.pack(codes.sign(encoding.logits))
        return RegionEncodings(packed, encoding.logits, encoding.label_logits)

    params = jax.device_put(run.needed_params(params))
    size = run.config.encode.batch_size
    batches = run.region_batches(rows, size)
    if not run.config.base.train_conv:
        batches = (batch[:, :num_regions] for batch in batches)
    return batched.apply_all(functools.partial(encode, params), batches, size)
