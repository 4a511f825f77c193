"""TFDS builders of the literature's data sets, and a reader of their records.

Photos are resized once, so that runs decode small photos. Records are array_record files with
random access, which do not need TensorFlow. They keep the order of the rows of each split. As in
labels.csv, the TFDS split `database` does not contain the training photos, whereas the database of
a data set does.

    builder = MchCoco(data_dir="tfds", config=config(size=256))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=ROOT))
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mch_jax.data import literature
from mch_jax.data.audits import audit
from mch_jax.data.dataset import SPLITS, Dataset
from mch_jax.data.loader import epoch
from mch_jax.data.photos import decode

_QUALITY = 95
_BATCH = 64


@dataclasses.dataclass
class RecordsConfig(tfds.core.BuilderConfig):
    """Settings of the records.

    Attributes:
      size: Side of the square to which photos are resized, in pixels.
      on_damaged: `refuse` or `skip`: what to do with photos that do not decode.
      settings: Settings of the reader.
    """

    size: int = 256
    on_damaged: str = "refuse"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def config(size: int = 256, on_damaged: str = "refuse", **settings: Any) -> RecordsConfig:
    """Returns a config whose name contains its size and a hash of its settings, if any.

    Args:
      size: As in `RecordsConfig`.
      on_damaged: As in `RecordsConfig`.
      **settings: Settings of the reader.
    """
    if size < 32:
        raise ValueError(f"size is {size}, expected at least 32 pixels")
    name = f"{size}px"
    if settings:
        text = json.dumps(settings, sort_keys=True)
        name += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return RecordsConfig(
        name=name, version="1.0.0", size=size, on_damaged=on_damaged, settings=settings
    )


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds the records of a data set of the literature from archives in the manual folder."""

    VERSION = tfds.core.Version("1.0.0")
    # The folder where TFDS looks for checksums. Without a value TFDS imports a package that it does
    # not install.
    code_path: Any = None
    READER: Callable[..., Dataset]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put the published archives there; see docs/datasets.md."

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any):
        super().__init__(file_format=file_format, **{"config": config(), **kwargs})

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "labels": tfds.features.Tensor(shape=(None,), dtype=np.uint8),
                    "name": tfds.features.Text(),
                    "size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        settings: Any = self.builder_config
        dataset = type(self).READER(dl_manager.manual_dir, **settings.settings)
        dataset, _ = audit(dataset, settings.on_damaged)
        rows = {split: getattr(dataset, split) for split in SPLITS}
        rows["database"] = np.setdiff1d(rows["database"], rows["train"])
        metadata: Any = self.info.metadata
        metadata.update(
            dataset=dataset.name,
            classes=list(dataset.classes),
            notes=list(dataset.notes),
            photos={
                split: {
                    "names": dataset.ids[own].tolist(),
                    "labels": [np.flatnonzero(row).tolist() for row in dataset.labels[own]],
                    "sizes": dataset.sizes[own].tolist(),
                }
                for split, own in rows.items()
            },
        )
        return {
            split: self._generate_examples(dataset, own, settings.size)
            for split, own in rows.items()
        }

    def _generate_examples(
        self, dataset: Dataset, rows: np.ndarray, size: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        position = 0
        for batch in epoch(dataset, rows, size, _BATCH):
            for image, row in zip(batch["image"], batch["row"], strict=True):
                file = io.BytesIO()
                Image.fromarray(image).save(file, "JPEG", quality=_QUALITY)
                yield (
                    position,
                    {
                        "image": file.getvalue(),
                        "labels": dataset.labels[row],
                        "name": str(dataset.ids[row]),
                        "size": dataset.sizes[row],
                    },
                )
                position += 1


class MchCoco(_Builder):
    """MS-COCO 2014 with the 80 categories as labels."""

    READER = staticmethod(literature.coco)


class MchNuswide(_Builder):
    """NUS-WIDE with its most frequent concepts as labels."""

    READER = staticmethod(literature.nuswide)


class MchMirflickr(_Builder):
    """MIRFLICKR-25K with its annotations as labels."""

    READER = staticmethod(literature.mirflickr)


BUILDERS = {"coco": MchCoco, "nuswide": MchNuswide, "mirflickr": MchMirflickr}


def prepare(
    name: str,
    root: str | os.PathLike,
    data_dir: str | os.PathLike,
    size: int = 256,
    on_damaged: str = "refuse",
    **settings: Any,
) -> pathlib.Path:
    """Writes the records of a data set, unless they exist, and returns their folder.

    Args:
      name: A key of BUILDERS.
      root: Folder of the archives.
      data_dir: Folder below which the records are written, in a subfolder named after the data
        set and its settings.
      size: Side of the square to which photos are resized, in pixels.
      on_damaged: `refuse` or `skip`: what to do with photos that do not decode.
      **settings: Settings of the reader.

    Raises:
      ValueError: An archive is missing or damaged.
    """
    if not pathlib.Path(root).is_dir() or not os.listdir(root):
        raise ValueError(f"{name}: root is '{root}', expected the folder of its archives")
    builder = BUILDERS[name](
        data_dir=os.fspath(data_dir), config=config(size, on_damaged, **settings)
    )
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=os.fspath(root))
    )
    return pathlib.Path(builder.data_dir)


def _record_bytes(
    sources: Mapping[str, Any], splits: np.ndarray, positions: np.ndarray, row: int
) -> bytes:
    return sources[str(splits[row])][int(positions[row])]["image"]


def _read_record(
    sources: Mapping[str, Any], splits: np.ndarray, positions: np.ndarray, row: int
) -> np.ndarray:
    record = sources[str(splits[row])][int(positions[row])]
    return decode(record["image"], record["name"].decode())


def read(name: str, root: str | os.PathLike) -> Dataset:
    """Returns the data set whose records `prepare` wrote.

    Its `sizes` are those of the published photos, before resizing.

    Args:
      name: A key of BUILDERS.
      root: The folder that `prepare` returned.

    Raises:
      ValueError: The folder does not contain the records of this data set.
    """
    try:
        builder: Any = tfds.builder_from_directory(os.fspath(root))
        metadata: Any = builder.info.metadata
        photos = metadata["photos"]
        sources = {
            split: builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            for split in SPLITS
        }
        counts = [len(photos[split]["names"]) for split in SPLITS]
        whole = metadata["dataset"] == name and counts == [len(sources[s]) for s in SPLITS]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{name}: the records in '{root}' do not open ({type(error).__name__}: {error}); "
            "make them again"
        ) from error
    if not whole:
        raise ValueError(
            f"{name}: '{root}' does not have all records of this data set; make them again, or "
            "give another root"
        )
    found = {
        key: [entry for split in SPLITS for entry in photos[split][key]]
        for key in ("names", "labels", "sizes")
    }
    labels = np.zeros((len(found["names"]), len(metadata["classes"])), np.uint8)
    for row, columns in enumerate(found["labels"]):
        labels[row, columns] = 1
    ends = np.cumsum(counts)
    place = (sources, np.repeat(SPLITS, counts), np.concatenate([np.arange(x) for x in counts]))
    return Dataset(
        name=name,
        classes=tuple(metadata["classes"]),
        ids=np.array(found["names"]),
        labels=labels,
        query=np.arange(ends[0]),
        database=np.arange(ends[0], ends[2]),
        train=np.arange(ends[1], ends[2]),
        read=functools.partial(_read_record, *place),
        content=functools.partial(_record_bytes, *place),
        sizes=np.array(found["sizes"], np.int32),
        files=sorted(pathlib.Path(root).glob("*.array_record*")),
        notes=tuple(metadata["notes"]),
    )
