"""Features from a file: any network's, in place of AlexNet's convolutions.

A features file is an .npz that `numpy.load(path, allow_pickle=False)` opens, format
`mch-features/1`:

| array | dtype, shape | what |
| --- | --- | --- |
| `ids` | str [n] | the photos' names, in any order; further photos do no harm |
| `regions` | float [n, 6, d] | of the whole photo, its four corners and its middle |
| `crop_ratio` | float scalar | side ratio of the five, `encode.crop_ratio` of the runs |
| `view_ids` | str [t] | names of training photos; may be left out with `views` |
| `views` | float [t, v, d] | of the whole photo, its mirror image, and random regions as large |
| `format` | str scalar | `mch-features/1` |

Without `views` a base model trains on the whole photo and on the five regions.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from mch_jax import data, regions
from mch_jax.files import checkpoint
from mch_jax.training import features

FORMAT = "mch-features/1"
NUM_REGIONS = len(regions.NAMES)
Network = Callable[[UInt8[np.ndarray, "b s s 3"]], Float[np.ndarray, "b d"]]


class Features(NamedTuple):
    """The features of a data set's photos.

    Attributes:
      regions: of every photo, in the order of the data set's rows.
      views: of the training photos: whole, mirrored, random regions.
    """

    regions: Float[np.ndarray, "n 6 d"]
    views: Float[np.ndarray, "t v d"]


def save(
    path: str | os.PathLike[str],
    ids: np.ndarray,
    region_features: Float[np.ndarray, "n 6 d"],
    crop_ratio: float,
    view_ids: np.ndarray | None = None,
    views: Float[np.ndarray, "t v d"] | None = None,
) -> None:
    """Writes a features file, whole or not at all; the arrays are described above."""
    arrays = {"ids": np.asarray(ids), "regions": region_features, "crop_ratio": crop_ratio}
    if views is not None:
        arrays |= {"view_ids": np.asarray(view_ids), "views": views}
    with checkpoint.whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, format=np.str_(FORMAT), **arrays)


def load(path: str | os.PathLike[str], dataset: data.Dataset, crop_ratio: float) -> Features:
    """Returns the features of a data set's photos.

    Args:
      path: of the file.
      dataset: whose photos to look for.
      crop_ratio: side ratio of the regions that the run wants.

    Raises:
      ValueError: the file is missing, damaged, of another format, or lacks a photo.
    """
    arrays = _read(path)
    found, table = arrays["ids"], arrays["regions"]
    if not np.isclose(arrays["crop_ratio"], crop_ratio):
        raise ValueError(
            f"features file {path} is of regions at ratio {float(arrays['crop_ratio'])}, the run "
            f"has encode.crop_ratio {crop_ratio}; make them equal"
        )
    own = table[_rows(path, found, dataset.ids)]
    train_ids = dataset.ids[dataset.train]
    if "views" in arrays:
        views = arrays["views"][_rows(path, arrays["view_ids"], train_ids)]
    else:
        # The whole photo stands for its mirror image too, and the regions for random ones.
        views = own[dataset.train][:, [0, 0, *range(1, NUM_REGIONS)]]
    return Features(own, views)


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            arrays = dict(archive)
        reason = "" if _is_sound(arrays) else "its arrays are not as described"
    except FileNotFoundError:
        raise ValueError(
            f"features file {path} does not exist; docs/backbones.md says how to make one"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged archive can raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
    if reason:
        raise ValueError(
            f"features file {path} is not of the format {FORMAT} ({reason}); docs/backbones.md "
            "says what is in one"
        )
    return arrays


def _is_sound(arrays: dict[str, np.ndarray]) -> bool:
    ids, table = arrays["ids"], arrays["regions"]
    sound = (
        str(arrays["format"]) == FORMAT
        and arrays["crop_ratio"].shape == ()
        and ids.dtype.kind == "U"
        and table.dtype.kind == "f"
        and table.shape[:2] == (len(ids), NUM_REGIONS)
        and table.ndim == 3
        and bool(np.isfinite(table).all())
    )
    if sound and "views" in arrays:
        ids, views = arrays["view_ids"], arrays["views"]
        sound = (
            ids.dtype.kind == "U"
            and views.dtype.kind == "f"
            and views.ndim == 3
            and views.shape[0] == len(ids)
            and views.shape[1] >= 3
            and views.shape[2] == table.shape[2]
            and bool(np.isfinite(views).all())
        )
    return sound


def _rows(path: str | os.PathLike[str], found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    row_of = {str(name): row for row, name in enumerate(found)}
    missing = [str(name) for name in wanted if str(name) not in row_of]
    if missing:
        raise ValueError(
            f"features file {path} lacks {len(missing)} of {len(wanted)} photos, '{missing[0]}' "
            "first; make it from the same data set"
        )
    return np.array([row_of[str(name)] for name in wanted], np.int64)


def make(
    path: str | os.PathLike[str],
    dataset: data.Dataset,
    network: Network,
    *,
    crop_ratio: float = 0.5,
    num_views: int = 4,
    image_size: int = 256,
    input_size: int = 224,
    batch_size: int = 16,
) -> None:
    """Makes a features file with a network; a call that was cut off goes on when repeated.

    Args:
      path: of the file.
      dataset: audited, whose photos to read.
      network: photos in RGB -> their features, in NumPy.
      crop_ratio: side ratio of the regions.
      num_views: random regions of each training photo; without, training makes do with the five.
      image_size: the size that photos are squashed to before they are cropped.
      input_size: of the network's input.
      batch_size: photos at a time.
    """
    path = Path(path)
    cropped = jax.jit(lambda *a: jnp.rint(regions.crop(*a[:2], input_size, a[2])).astype(jnp.uint8))

    def extract(images, boxes, flips):
        return network(np.asarray(cropped(images, boxes, flips)))

    width = network(np.zeros((1, input_size, input_size, 3), np.uint8)).shape[-1]

    def table(title, rows, boxes, flips):
        part = path.with_name(f"{path.name}.{title}.npy")
        return part, features.extracted(
            part, dataset, rows, boxes, flips, extract, width,
            title=title, image_size=image_size, batch_size=batch_size,
        )  # fmt: skip

    rows = np.arange(len(dataset.ids))
    boxes = np.tile(regions.region_boxes(crop_ratio)[None], (len(rows), 1, 1))
    parts = [table("regions", rows, boxes, np.zeros(boxes.shape[:2], bool))]
    view_ids = views = None
    if num_views:
        view_ids = dataset.ids[dataset.train]
        drawn = features.random_views(dataset.train, num_views, crop_ratio)
        parts.append(table("views", dataset.train, *drawn))
        views = parts[1][1]
    save(path, dataset.ids, parts[0][1], crop_ratio, view_ids, views)
    for part, _ in parts:
        part.unlink()
        part.with_suffix(".lock").unlink()
