"""Batches of photos, decoded in background threads."""

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64

from mch_jax.data.dataset import Dataset
from mch_jax.data.photos import resize


def _example(dataset: Dataset, rows: np.ndarray, size: int, index: int) -> dict[str, np.ndarray]:
    row = rows[index]
    image = resize(dataset.read(int(row)), size)
    return {"image": image, "row": row, "labels": dataset.labels[row]}


def _iterate(source: Any, start_step: int) -> Iterator[dict[str, np.ndarray]]:
    import grain  # takes a second, which encoding a single photo does not need

    threads = os.cpu_count() or 1
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    iterator = iter(source.to_iter_dataset(options))
    try:
        iterator.set_state({"next_index": start_step})
        yield from iterator
    finally:
        iterator.close()


def batches(
    dataset: Dataset,
    rows: Int64[np.ndarray, " k"],
    size: int,
    batch_size: int,
    seed: int = 0,
    start_step: int = 0,
    drop_remainder: bool = True,
    shuffle: bool = True,
    repeat: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates over batches that background threads decode ahead of time.

    Batch t depends on the arguments and on t only, so a run resumes in the middle of an epoch with
    `start_step=t`. Each epoch has its own order and contains every row at most once. The threads
    end when the iterator is closed or garbage-collected.

    Args:
      dataset: The data set.
      rows: Rows of the data set to iterate over.
      size: Side of the square to which photos are resized, in pixels.
      batch_size: Number of photos per batch.
      seed: Seed of the order, not negative.
      start_step: Number of the first batch to yield.
      drop_remainder: Whether to leave out the last rows of an epoch if they do not fill a batch.
        Otherwise the last batch of an epoch is smaller.
      shuffle: Whether to shuffle the rows of each epoch.
      repeat: Whether to iterate forever rather than for one epoch.

    Returns:
      An iterator over dicts: image uint8 [b size size 3], row int64 [b], labels uint8 [b c].

    Raises:
      ValueError: There are fewer rows than a batch needs. The iterator itself raises ValueError
        for a photo that does not decode.
    """
    if len(rows) < (batch_size if drop_remainder else 1):
        raise ValueError(
            f"batch_size is {batch_size}, but {dataset.name} has {len(rows)} rows to draw from; "
            "choose a smaller batch or more photos"
        )
    import grain

    source = grain.MapDataset.range(len(rows))
    if shuffle:
        # Grain shuffles epoch e with seed + e, so adjacent seeds would share epochs.
        scattered = np.random.SeedSequence(seed).generate_state(1)
        source = source.shuffle(seed=int(scattered[0]))
    source = source.map(functools.partial(_example, dataset, rows, size))
    source = source.batch(batch_size, drop_remainder=drop_remainder)
    if repeat:
        source = source.repeat()
    return _iterate(source, start_step)


def epoch(
    dataset: Dataset, rows: Int64[np.ndarray, " k"], size: int, batch_size: int, start_step: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Iterates once over `rows` in the given order. The last batch may be smaller.

    Args:
      dataset: The data set.
      rows: Rows of the data set to iterate over.
      size: Side of the square to which photos are resized, in pixels.
      batch_size: Number of photos per batch.
      start_step: Number of the first batch to yield.

    Returns:
      An iterator as `batches` returns.
    """
    if not len(rows):
        return iter(())
    return batches(
        dataset,
        rows,
        size,
        batch_size,
        start_step=start_step,
        drop_remainder=False,
        shuffle=False,
        repeat=False,
    )
