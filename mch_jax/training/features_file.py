"""Features of any network, read from a file, in place of those of AlexNet's convolutions.

A features file is an .npz that `numpy.load(path, allow_pickle=False)` opens, format
`mch-features/1`:

| array | dtype, shape | what |
| --- | --- | --- |
| `ids` | str [n] | names of the photos, in any order; photos of no data set are ignored |
| `regions` | float [n, 6, d] | features of each photo's regions, in the order of `regions.NAMES` |
| `crop_ratio` | float scalar | side ratio of the regions, equal to the runs' `encode.crop_ratio` |
| `view_ids` | str [t] | names of the training photos; optional, together with `views` |
| `views` | float [t, v, d] | features of the whole photo, its mirror image and random regions |
| `format` | str scalar | `mch-features/1` |

Without `views`, base models are trained on the whole photo and the five regions.
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
from mch_jax.files import npz, schemas, whole_file
from mch_jax.training import features

FORMAT = "mch-features/1"
_NONE = np.zeros((0, 3, 0), np.float32)
Network = Callable[[UInt8[np.ndarray, "b s s 3"]], Float[np.ndarray, "b d"]]


class Features(NamedTuple):
    """Features of a data set's photos.

    Attributes:
      regions: Features of the regions of every photo, in the order of the data set's rows.
      views: Features of the training photos: the whole photo, its mirror image, random regions.
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
    """Writes a features file atomically; the arrays are described in this module's docstring."""
    arrays = {"ids": np.asarray(ids), "regions": region_features, "crop_ratio": crop_ratio}
    if views is not None:
        arrays |= {"view_ids": np.asarray(view_ids), "views": views}
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, format=np.str_(FORMAT), **arrays)


def load(path: str | os.PathLike[str], dataset: data.Dataset, crop_ratio: float) -> Features:
    """Returns the features of a data set's photos.

    Args:
      path: Path of the features file.
      dataset: The data set. The file may have its photos in another order, and further ones.
      crop_ratio: Side ratio of the run's regions.

    Raises:
      ValueError: The file is missing, damaged or has another format or crop ratio, or a photo is
        missing from it.
    """
    arrays = _read(path)
    if not np.isclose(arrays["crop_ratio"], crop_ratio):
        raise ValueError(
            f"features file {path} has regions with crop_ratio {float(arrays['crop_ratio'])}, the "
            f"run has encode.crop_ratio {crop_ratio}; make them equal"
        )
    own = arrays["regions"][_rows(path, arrays["ids"], dataset.ids)]
    train_ids = dataset.ids[dataset.train]
    if "views" in arrays:
        views = arrays["views"][_rows(path, arrays["view_ids"], train_ids)]
    else:
        # The whole photo also takes the place of its mirror image, the regions of random ones.
        views = own[dataset.train][:, [0, 0, *range(1, regions.NUM_REGIONS)]]
    return Features(own, views)


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        arrays = npz.read(path, schemas.FEATURES)
        reason = "" if str(arrays["format"]) == FORMAT else f"its format is {arrays['format']}"
        if ("views" in arrays) != ("view_ids" in arrays) or arrays.get("views", _NONE).shape[1] < 3:
            reason = reason or "views has fewer than 3 views, or there is no view_ids"
    except FileNotFoundError:
        raise ValueError(
            f"features file {path} does not exist; see docs/backbones.md for how to make one"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged archive can raise anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
    if reason:
        raise ValueError(
            f"features file {path} is not of the format {FORMAT} ({reason}); see "
            "docs/backbones.md for the format"
        )
    return arrays


def _rows(path: str | os.PathLike[str], found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the positions of the wanted ids among those of the file."""
    row_of = {str(name): row for row, name in enumerate(found)}
    missing = [str(name) for name in wanted if str(name) not in row_of]
    if missing:
        raise ValueError(
            f"features file {path} lacks {len(missing)} of {len(wanted)} photos, the first is "
            f"'{missing[0]}'; make the file from the same data set"
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
    """Writes a features file, with features that a network computes.

    To resume a call that was interrupted, repeat it.

    Args:
      path: Path of the features file.
      dataset: The data set, as `data.audit` returns it.
      network: Maps RGB images to their features, in NumPy.
      crop_ratio: Side ratio of the regions.
      num_views: Number of random regions of each training photo. With 0, the file has no `views`.
      image_size: Side in pixels to which photos are resized before they are cropped.
      input_size: Side in pixels of the network's input.
      batch_size: Number of photos in a batch.
    """
    path = Path(path)

    @jax.jit
    def cropped(images, boxes, flips):
        return jnp.rint(regions.crop(images, boxes, input_size, flips)).astype(jnp.uint8)

    def extract(images, boxes, flips):
        return network(np.asarray(cropped(images, boxes, flips)))

    width = network(np.zeros((1, input_size, input_size, 3), np.uint8)).shape[-1]

    def extracted(title, views):
        return features.extracted(
            path.with_name(f"{path.name}.{title}.npy"), dataset, views, extract, width,
            title=title, image_size=image_size, batch_size=batch_size,
        )  # fmt: skip

    rows = np.arange(len(dataset.ids))
    region_features = extracted("regions", features.region_views(rows, crop_ratio))
    view_ids = view_features = None
    if num_views:
        view_ids = dataset.ids[dataset.train]
        views = features.random_views(dataset.train, num_views, crop_ratio)
        view_features = extracted("views", views)
    save(path, dataset.ids, region_features, crop_ratio, view_ids, view_features)
    for title in ("regions", "views") if num_views else ("regions",):
        path.with_name(f"{path.name}.{title}.npy").unlink()
