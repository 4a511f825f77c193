"""Features of fixed convolutions, computed once, for runs that do not train the convolutions.

Runs of other methods, code lengths and seeds share them through a directory. The name of a file
contains a hash of everything that its features depend on.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Float, Int

from mch_jax import backbones, batched, data, regions
from mch_jax.files import locks, read_json, schemas, write_json
from mch_jax.models import AlexNet
from mch_jax.training import logs


class Views(NamedTuple):
    """Regions of photos whose features are computed.

    Attributes:
      rows: The photos' rows in the data set.
      boxes: Regions of each photo, as fractions of width and height.
      flips: Which regions are mirrored left to right.
    """

    rows: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n v 4"]
    flips: Bool[np.ndarray, "n v"]


def region_views(rows: Int[np.ndarray, " n"], crop_ratio: float) -> Views:
    """Returns the six regions that are encoded of each photo, none of them mirrored."""
    boxes = np.tile(regions.region_boxes(crop_ratio)[None], (len(rows), 1, 1))
    return Views(rows, boxes, np.zeros(boxes.shape[:2], bool))


def random_views(rows: Int[np.ndarray, " n"], num_crops: int, crop_ratio: float) -> Views:
    """Returns views to train on: the whole photo, its mirror image, and random regions.

    Each random region is mirrored with probability 1/2. The views of a photo depend on its row
    alone, so all runs get the same views.
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
    return Views(rows, np.asarray(boxes), np.asarray(flips))


def fingerprint(*values: Any) -> str:
    """Returns 16 hexadecimal digits that depend on every byte of the given arrays and numbers."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(values):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def cached(
    directory: str | Path,
    title: str,
    dataset: data.Dataset,
    views: Views,
    model: AlexNet,
    params: Mapping[str, Any],
    *,
    image_size: int,
    input_size: int,
    batch_size: int = 64,
) -> np.ndarray:
    """Returns the convolutional features of views of photos, float16 [n v k], from a file.

    The file is written on first use. A run that is killed meanwhile resumes when it is restarted.

    Args:
      directory: Directory of the shared files.
      title: First part of the file's name, and the title of the progress bar.
      dataset: The data set that the photos belong to, as `data.audit` returns it. The file's name
        depends on the digests of the photos.
      views: The views to compute features of.
      model: The network whose convolutions are used.
      params: Parameters of the network.
      image_size: Side in pixels to which photos are resized before they are cropped.
      input_size: Side in pixels of the network's input.
      batch_size: Number of photos that the network is called with.
    """
    if dataset.digests is None:
        raise ValueError(f"{dataset.name}: the data set has no digests; expected an audited one")
    conv_params = {name: value for name, value in params.items() if name.startswith("conv")}
    rows = views.rows
    name = fingerprint(
        np.array(dataset.name), dataset.ids[rows], dataset.digests[rows],
        views.boxes, views.flips, conv_params, image_size, input_size,
        None if model.conv_dtype == "float32" else np.array(model.conv_dtype),
    )  # fmt: skip

    @jax.jit
    def extract(images, boxes, flips):
        inputs = regions.crop(images, boxes, input_size, flips)
        features = model.apply({"params": conv_params}, inputs, method="conv_features")
        return jnp.asarray(features, jnp.float16)

    width = jax.eval_shape(
        extract,
        np.zeros((1, image_size, image_size, 3), np.uint8),
        views.boxes[:1, 0],
        views.flips[:1, 0],
    ).shape[-1]
    path = Path(directory) / f"{title}-{name}.npy"
    return extracted(
        path, dataset, views, extract, width,
        title=title, image_size=image_size, batch_size=batch_size,
    )  # fmt: skip


def of_backbone(
    directory: str | Path,
    title: str,
    dataset: data.Dataset,
    views: Views,
    backbone: backbones.Backbone,
    *,
    image_size: int,
    input_size: int,
    batch_size: int = 64,
) -> np.ndarray:
    """Returns a backbone's features of views of photos, float16 [n v k], from a file as `cached`.

    The file's name depends on the backbone's features of fixed images, not on its source.

    Args:
      directory: Directory of the shared files.
      title: First part of the file's name, and the title of the progress bar.
      dataset: The data set that the photos belong to, as `data.audit` returns it.
      views: The views to compute features of.
      backbone: The network.
      image_size: Side in pixels to which photos are resized before they are cropped.
      input_size: Side in pixels of the network's input.
      batch_size: Number of photos that the network is called with.
    """
    if dataset.digests is None:
        raise ValueError(f"{dataset.name}: the data set has no digests; expected an audited one")
    rows, record = views.rows, backbone.record
    name = fingerprint(
        np.array(dataset.name), dataset.ids[rows], dataset.digests[rows],
        views.boxes, views.flips, np.array(record.sha256), record.mean, record.std, record.probe,
        image_size, input_size,
    )  # fmt: skip

    def extract(images, boxes, flips):
        return backbone(np.asarray(backbones.cropped(images, boxes, flips, input_size)))

    return extracted(
        Path(directory) / f"{title}-{name}.npy", dataset, views, extract, record.width,
        title=title, image_size=image_size, batch_size=batch_size,
    )  # fmt: skip


def extracted(
    path: Path,
    dataset: data.Dataset,
    views: Views,
    extract: Callable[[Array, Array, Array], Any],
    width: int,
    *,
    title: str,
    image_size: int,
    batch_size: int,
) -> np.ndarray:
    """Returns features of views of photos, float16 [n v k], from a file written on first use.

    Args:
      path: Path of the file.
      dataset: The data set that the photos belong to.
      views: The views to compute features of.
      extract: Maps images [b s s 3], boxes [b 4] and flips [b] to features [b k].
      width: Number k of features.
      title: Title of the progress bar.
      image_size: Side in pixels to which photos are resized before they are cropped.
      batch_size: Number of photos that `extract` is called with.
    """
    shape = (*views.flips.shape, width)
    if path.exists():
        try:
            return _mapped(path, shape)
        except (ValueError, EOFError) as error:
            logging.warning("%s is damaged (%s); computing it again", path, error)
            path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.locked(path.with_suffix(".lock")):  # one of the runs that share the file writes it
        if not path.exists():

            def batches(start_step: int) -> Iterator[np.ndarray]:
                for batch in data.epoch(
                    dataset, views.rows, image_size, batch_size, start_step=start_step
                ):
                    yield batch["image"]

            _write(path, batches, views, extract, width, title, batch_size)
    return _mapped(path, shape)


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the features in a file, mapped into memory; raises ValueError for other arrays."""
    features = np.load(path, mmap_mode="r")
    if features.shape != shape or features.dtype != np.float16:
        raise ValueError(f"it holds {features.dtype} {features.shape}, expected float16 {shape}")
    return features


def _write(
    path: Path,
    batches: Callable[[int], Iterator[np.ndarray]],
    views: Views,
    extract: Callable[[Array, Array, Array], Any],
    width: int,
    title: str,
    batch_size: int,
) -> None:
    """Writes the file of `extracted`, or resumes writing it.

    The features go into a memory-mapped file with the suffix .part, and the number of photos done
    into a .json beside it; at the end, the former is renamed.
    """
    num_photos, num_views = views.flips.shape
    part, done_file = path.with_suffix(".part"), path.with_suffix(".json")
    done = 0
    if part.exists() and done_file.exists():
        done = read_json(done_file, "start again", schemas.PROGRESS)["done"]
    mode = "r+" if done else "w+"
    shape = (num_photos, num_views, width)
    features = np.lib.format.open_memmap(part, mode, np.dtype(np.float16), shape)
    allocate(part)

    def each_view(batch):
        images, boxes, flips = jnp.asarray(batch[0]), *batch[1:]
        # All views are dispatched before the first result is fetched.
        return [extract(images, boxes[:, view], flips[:, view]) for view in range(num_views)]

    shown = {"start": done, "unit": "photos", "size": batch_size}
    remaining = batches(done // batch_size)
    for images in logs.progress(remaining, num_photos, f"features of {title}", **shown):
        block = slice(done, done + len(images))
        batch = (images, views.boxes[block], views.flips[block])
        for view, values in enumerate(batched.apply(each_view, batch, batch_size)):
            features[block, view] = values
        done += len(images)
        if (done // batch_size) % 16 == 0:
            features.flush()
            write_json(done_file, {"done": done})
    features.flush()
    part.replace(path)
    done_file.unlink(missing_ok=True)


def allocate(path: Path) -> None:
    """Allocates the disk blocks of a sparse file, and removes the file if the disk is full.

    Without this, a process that writes to a memory map of the file is killed by a signal when the
    disk is full.

    Raises:
      OSError: There is not enough space.
    """
    with open(path, "r+b") as file:
        try:
            if hasattr(os, "posix_fallocate"):  # not on macOS and Windows
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            path.unlink()
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None
