"""Synthetic inputs of the benchmarks: labels, codes around the centres of classes, and photos."""

import io

import numpy as np
from PIL import Image

from mch_jax.files.codes_file import CodeFile

NUM_CLASSES = 80
FLIPS = 0.05  # fraction of a code's bits that differ from its centre
NOISE = 0.1  # fraction of uniformly random codes


def labels(rng, count):
    """Returns multi-hot labels uint8 [n, 80] of 1 to 5 classes, some more frequent than others."""
    popularity = np.arange(1, NUM_CLASSES + 1) ** -0.7
    chosen = np.zeros((count, NUM_CLASSES), np.uint8)
    numbers = rng.integers(1, 6, count)
    for turn in range(5):
        rows = np.flatnonzero(numbers > turn)
        classes = rng.choice(NUM_CLASSES, len(rows), p=popularity / popularity.sum())
        chosen[rows, classes] = 1
    return chosen


def code_file(rng, labels, codes_per_image, num_bits):
    """Returns a codes file with each code near the centre of one class of its item."""
    num_items = len(labels)
    centres = np.random.default_rng(7).random((NUM_CLASSES, num_bits)) < 0.5
    item = np.repeat(np.arange(num_items), codes_per_image)
    # The largest of random numbers, 0 for other classes, selects one of the item's classes.
    codes = np.empty((len(item), -(-num_bits // 8)), np.uint8)
    for start in range(0, len(item), 1 << 16):
        own = item[start : start + (1 << 16)]
        keys = rng.random((len(own), NUM_CLASSES), np.float32) * labels[own]
        bits = centres[keys.argmax(1)]
        bits ^= rng.random(bits.shape, np.float32) < FLIPS
        noise = rng.random(len(own)) < NOISE
        bits[noise] = rng.random((noise.sum(), num_bits)) < 0.5
        codes[start : start + len(own)] = np.packbits(bits, axis=1, bitorder="little")
    return CodeFile(
        codes=codes,
        item=item,
        ids=np.arange(num_items).astype(np.str_),
        keep_prob=np.ones(len(item), np.float32),
        box=np.zeros((len(item), 4), np.int32),
        labels=labels,
        num_bits=num_bits,
    )


def retrieval(num_queries, num_items, codes_per_image, num_bits=64, seed=0):
    """Returns the codes files of queries and of a database."""
    rng = np.random.default_rng(seed)
    query = code_file(rng, labels(rng, num_queries), 1, num_bits)
    return query, code_file(rng, labels(rng, num_items), codes_per_image, num_bits)


def jpeg(rng, width=640, height=480, quality=90):
    """Returns the bytes of a photo-like JPEG, with smooth patches and some noise."""
    coarse = rng.integers(0, 256, (15, 20, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 12, (height, width, 3))
    pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
