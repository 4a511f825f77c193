"""Batches of photos, decoded ahead in threads."""

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
    import grain  # a second that encoding one photo does not need

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
    """Iterates over batches, decoded ahead in threads.

    Batch t is a function of the arguments, `seed` and t alone, so a run goes on in mid-epoch with
    `start_step=t`. Each epoch has an order of its own and shows every row at most once. Close the
    iterator (or let it be collected) to end its threads.

    Args:
      dataset: the data set.
      rows: the rows to show.
      size: side to which photos are squashed.
      batch_size: photos a batch.
      seed: of the order, not negative.
      start_step: the first batch to yield.
      drop_remainder: leave out an epoch's last rows where they don't fill a batch; the next
        epoch draws anew. Without it that batch is smaller.
      shuffle: without it, rows come as given.
      repeat: without it, one epoch.

    Returns:
      An iterator over dicts: image uint8 [b size size 3], row int64 [b], labels uint8 [b c].

    Raises:
      ValueError: there are fewer rows than one batch needs. The iterator itself raises it for a
        photo that doesn't decode.
    """
    if len(rows) < (batch_size if drop_remainder else 1):
        raise ValueError(
            f"batch_size is {batch_size}, but {dataset.name} has {len(rows)} rows to draw from; "
            "choose a smaller batch or more photos"
        )
    import grain

    source = grain.MapDataset.range(len(rows))
    if shuffle:
        # Grain orders epoch e by seed + e, so neighbouring seeds would share their epochs.
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
    """Iterates once over `rows` as given; the last batch may be smaller.

    Args:
      dataset: the data set.
      rows: the rows to show.
      size: side to which photos are squashed.
      batch_size: photos a batch.
      start_step: the first batch to yield.

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
