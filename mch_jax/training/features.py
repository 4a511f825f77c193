"""Features of fixed convolutions, made once: for runs that do not train the convolutions.

They lie in a directory that runs of other methods, code lengths and seeds can share, under a name
made of all that they depend on.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Float, Int

from mch_jax import data, regions
from mch_jax.files.checkpoint import read_json, write_json
from mch_jax.models import AlexNet
from mch_jax.training import logs, parallel


def fingerprint(*parts: Any) -> str:
    """Returns 16 hexadecimal digits that depend on every byte of the arrays and values given."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(parts):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def random_views(
    rows: Int[np.ndarray, " n"], num_crops: int, crop_ratio: float
) -> tuple[Float[np.ndarray, "n v 4"], Bool[np.ndarray, "n v"]]:
    """Returns boxes and flips: the whole photo, its mirror image, random crops, half mirrored.

    They depend on the row alone, so that every run sees the same.
    """

    def one(row):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), row), 2)
        boxes = jax.vmap(lambda key: regions.random_box(key, crop_ratio))(
            jax.random.split(keys[0], num_crops)
        )
        whole = jnp.tile(jnp.asarray(regions.WHOLE)[None], (2, 1))
        flips = jax.random.bernoulli(keys[1], 0.5, (num_crops,))
        return jnp.concatenate([whole, boxes]), jnp.concatenate([jnp.array([False, True]), flips])

    boxes, flips = jax.jit(jax.vmap(one))(rows)
    return np.asarray(boxes), np.asarray(flips)


def cached(
    directory: str | Path,
    title: str,
    dataset: data.Dataset,
    rows: Int[np.ndarray, " n"],
    boxes: Float[np.ndarray, "n v 4"],
    flips: Bool[np.ndarray, "n v"],
    model: AlexNet,
    params: Mapping[str, Any],
    *,
    image_size: int,
    input_size: int,
    batch_size: int = 64,
) -> np.ndarray:
    """Returns float16 convolutional features [n v k] of regions of photos, from a file.

    The file is made on first use, and a killed run goes on with it where it stopped.

    Args:
      directory: of the files.
      title: of the file, for people.
      dataset: whose photos to read.
      rows: of the photos.
      boxes: regions of each photo.
      flips: which regions are mirrored.
      model: whose convolutions to use.
      params: its parameters.
      image_size: the size that photos are squashed to before they are cropped.
      input_size: the size of the network's input.
      batch_size: photos at a time.
    """
    conv_params = {name: value for name, value in params.items() if name.startswith("conv")}
    name = fingerprint(
        np.array(dataset.name), dataset.ids[rows], dataset.sizes[rows], _sample(dataset, rows),
        boxes, flips, conv_params, image_size, input_size,
    )  # fmt: skip

    @jax.jit
    def extract(images, boxes, flips):
        inputs = regions.crop(images, boxes, input_size, flips)
        features = model.apply({"params": conv_params}, inputs, method="conv_features")
        return jnp.asarray(features, jnp.float16)

    width = jax.eval_shape(
        extract, np.zeros((1, image_size, image_size, 3), np.uint8), boxes[:1, 0], flips[:1, 0]
    ).shape[-1]
    path = Path(directory) / f"{title}-{name}.npy"
    return extracted(
        path, dataset, rows, boxes, flips, extract, width,
        title=title, image_size=image_size, batch_size=batch_size,
    )  # fmt: skip


def extracted(
    path: Path,
    dataset: data.Dataset,
    rows: Int[np.ndarray, " n"],
    boxes: Float[np.ndarray, "n v 4"],
    flips: Bool[np.ndarray, "n v"],
    extract: Callable[[Array, Array, Array], Any],
    width: int,
    *,
    title: str,
    image_size: int,
    batch_size: int,
) -> np.ndarray:
    """Returns float16 features [n v k] of regions of photos, from a file made on first use.

    Args:
      path: of the file.
      dataset: whose photos to read.
      rows: of the photos.
      boxes: regions of each photo.
      flips: which regions are mirrored.
      extract: (photos uint8 [b s s 3], boxes [b 4], flips [b]) -> features [b k].
      width: k.
      title: of the progress bar.
      image_size: the size that photos are squashed to before they are cropped.
      batch_size: photos at a time.
    """
    if path.exists():
        try:
            return np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            logging.warning("%s is damaged (%s): it is made again", path, error)
            path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        # Of several runs that share the file one makes it; the lock ends with its process.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _extract(
                path, dataset, rows, boxes, flips, extract, width, title, image_size, batch_size
            )
    return np.load(path, mmap_mode="r")


def _extract(path, dataset, rows, boxes, flips, extract, width, title, image_size, batch_size):
    """Writes the file of `extracted`, going on with what is there of it."""
    num_views = boxes.shape[1]
    part, done_file = path.with_suffix(".part"), path.with_suffix(".json")
    done = 0
    if part.exists() and done_file.exists():
        done = read_json(done_file, "start again")["done"]
    mode = "r+" if done else "w+"
    shape = (len(rows), num_views, width)
    features = np.lib.format.open_memmap(part, mode, np.dtype(np.float16), shape)
    reserve(part)
    batches = data.epoch(dataset, rows, image_size, batch_size, start_step=done // batch_size)
    total = -(-len(rows) // batch_size)
    for batch in logs.progress(batches, total, f"features of {title}", done // batch_size):
        images, count = batch["image"], len(batch["image"])
        images = jnp.asarray(parallel.pad_to_multiple(images, batch_size))
        block = slice(done, done + count)
        # All views are under way before the first is fetched.
        parts = [
            extract(
                images,
                _filled(boxes[block, view], batch_size),
                _filled(flips[block, view], batch_size),
            )
            for view in range(num_views)
        ]
        for view, values in enumerate(parts):
            features[block, view] = np.asarray(values)[:count]
        done += count
        if (done // batch_size) % 16 == 0:
            features.flush()
            write_json(done_file, {"done": done})
    features.flush()
    part.replace(path)
    done_file.unlink(missing_ok=True)


def reserve(path: Path) -> None:
    """Takes the disk space that a file of holes will need; without it a full disk kills a writer.

    Raises:
      OSError: there is not enough; the file is removed.
    """
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            path.unlink()
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None


def _filled(values: np.ndarray, length: int) -> Array:
    """Returns rows repeated up to a length: an empty box would be divided by zero."""
    return jnp.asarray(np.resize(values, (length, *values.shape[1:])))


def _sample(dataset: data.Dataset, rows: np.ndarray) -> list[np.ndarray]:
    """Returns a few photos: data sets of one name and size may still hold other pictures."""
    return [dataset.read(int(row)) for row in rows[:: max(1, len(rows) // 4)][:4]]
