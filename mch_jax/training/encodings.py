"""Encodings of photos by a base model of the run, on the host."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt32

from mch_jax import codes, data, models, regions
from mch_jax.codes import Encoding
from mch_jax.training import parallel
from mch_jax.training.run import NUM_REGIONS, Run

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
    size, parts = run.config.encode.batch_size * NUM_REGIONS, []
    encode = jax.jit(lambda params, batch: models.encode(run.model, params, batch))
    params = jax.device_put(jax.device_get(run.needed_params(params)))
    for batch in _whole_batches(run, positions, size):
        count = len(next(iter(batch.values())))
        batch = {k: parallel.pad_to_multiple(v, size) for k, v in batch.items()}
        if "image" in batch:
            box = jnp.tile(jnp.asarray(regions.WHOLE)[None], (size, 1))
            batch = {"image": _crop(batch["image"], box, run.config.model.input_size)}
        encoding = encode(params, batch)
        parts.append([np.asarray(x)[:count] for x in encoding])
    return Encoding(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def _whole_batches(
    run: Run, positions: Int[np.ndarray, " n"], size: int
) -> Iterator[dict[str, np.ndarray]]:
    config = run.config
    if config.base.train_conv:
        rows = run.dataset.train[positions]
        for batch in data.epoch(run.dataset, rows, config.dataset.image_size, size):
            yield {"image": batch["image"]}
    else:
        for start in range(0, len(positions), size):
            yield {"conv": run.train_views[positions[start : start + size], 0]}


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
        return packed, encoding.logits, encoding.label_logits

    params = jax.device_put(run.needed_params(params))
    size, parts = run.config.encode.batch_size, []
    for batch in run.region_batches(rows, size):
        inputs = batch if run.config.base.train_conv else batch[:, :num_regions]
        result = encode(params, parallel.pad_to_multiple(inputs, size))
        parts.append([np.asarray(x)[: len(batch)] for x in result])
    return RegionEncodings(*(np.concatenate(x) for x in zip(*parts, strict=True)))
