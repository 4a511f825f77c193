"""Batches of training photos, or of cached features of them.

A training photo's position is its place in the training set; its row is its place in the data set.
Batch t depends on the seed and on t alone, so that training resumes at any step.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from mch_jax import data
from mch_jax.training.streams import Stream, generator

NUM_WHOLE_VIEWS = 2  # the first views of a photo: the whole photo, and its mirror image


def shuffled(
    count: int, batch_size: int, start_step: int, seed: int, stream: Stream
) -> Iterator[tuple[int, Int[np.ndarray, " b"]]]:
    """Yields steps from one on, and the numbers below `count` in each step's batch.

    Every epoch has an order of its own and leaves out the remainder of the last batch.

    Args:
      count: Number of examples.
      batch_size: Number of examples in a batch.
      start_step: First step.
      seed: Seed of the run.
      stream: Random stream of the orders.
    """
    for step in itertools.count(start_step):
        epoch, number = divmod(step, count // batch_size)
        order = generator(seed, stream, epoch).permutation(count)
        yield step, order[number * batch_size : (number + 1) * batch_size]


def base_views(
    views: Float[np.ndarray, "n v k"],
    positions: Int[np.ndarray, " p"],
    start_step: int,
    *,
    batch_size: int,
    crop_fraction: float,
    seed: int,
) -> Iterator[tuple[Int[np.ndarray, " b"], dict[str, np.ndarray]]]:
    """Yields positions, and cached features of the photos or of random regions of them.

    Args:
      views: Features of each training photo's views: whole, mirrored, random regions.
      positions: Positions of the photos to draw from.
      start_step: First step.
      batch_size: Number of photos in a batch.
      crop_fraction: Probability of a random region.
      seed: Seed of the run.
    """
    num_regions = max(views.shape[1] - NUM_WHOLE_VIEWS, 1)
    batches = shuffled(len(positions), batch_size, start_step, seed, Stream.BASE_ORDER)
    for step, chosen in batches:
        rng = generator(seed, Stream.BASE_VIEWS, step)
        region = NUM_WHOLE_VIEWS + rng.integers(num_regions, size=batch_size)
        is_region = rng.random(batch_size) < crop_fraction
        view = np.where(is_region, region, rng.integers(NUM_WHOLE_VIEWS, size=batch_size))
        yield positions[chosen], {"conv": views[positions[chosen], view]}


def region_views(
    views: Float[np.ndarray, "n v k"], start_step: int, *, batch_size: int, seed: int
) -> Iterator[tuple[Int[np.ndarray, " b"], dict[str, np.ndarray]]]:
    """Yields positions, and cached features of a random region of each photo.

    Args:
      views: Features of each training photo's views: whole, mirrored, random regions.
      start_step: First step.
      batch_size: Number of photos in a batch.
      seed: Seed of the run.
    """
    batches = shuffled(len(views), batch_size, start_step, seed, Stream.AGENT_ORDER)
    for step, chosen in batches:
        rng = generator(seed, Stream.AGENT_VIEWS, step)
        num_regions = views.shape[1] - NUM_WHOLE_VIEWS
        view = NUM_WHOLE_VIEWS + rng.integers(num_regions, size=batch_size)
        yield chosen, {"conv": views[chosen, view]}


def photos(
    dataset: data.Dataset,
    positions: Int[np.ndarray, " p"],
    start_step: int,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[Int[np.ndarray, " b"], dict[str, np.ndarray]]]:
    """Yields positions and photos as uint8 [b s s 3]; they are cropped on the device.

    Args:
      dataset: The data set.
      positions: Positions of the photos to draw from.
      start_step: First step.
      image_size: Side to which photos are resized.
      batch_size: Number of photos in a batch.
      seed: Seed of the order.
    """
    position_of_row = np.zeros(len(dataset.ids), np.int64)
    position_of_row[dataset.train] = np.arange(len(dataset.train))
    rows = dataset.train[positions]
    for batch in data.batches(
        dataset, rows, image_size, batch_size, seed=seed, start_step=start_step
    ):
        yield position_of_row[batch["row"]], {"image": batch["image"]}
