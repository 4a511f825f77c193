"""Benchmarks of encoding and of reading photos."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from bench import inputs, measure
from bench.workload import (
    CONFIG,
    FLOPS,
    HIDDEN,
    INPUT,
    MODEL,
    NUM_BITS,
    SIZE,
    base_params,
    by_flops,
    pixels,
)
from mch_jax import data, regions
from mch_jax.agent import state as agent_state
from mch_jax.data import loader, photos
from mch_jax.encoder import Encoder
from mch_jax.training import policy


def encoding(quick: bool) -> list[measure.Row]:
    """Measures encoding of six regions per photo to codes and keep probabilities."""
    count = 2 if quick else 16
    agents = policy.network(CONFIG)
    state = jnp.zeros((1, agent_state.width(HIDDEN, NUM_BITS)))
    variables = jax.jit(agents.init)(jax.random.key(0), state)
    encoder = Encoder(
        model=MODEL, params=base_params(), policy=agents, policy_variables=variables,
        crop_ratio=CONFIG.encode.crop_ratio, keep_threshold=CONFIG.encode.keep_threshold,
        image_size=SIZE, input_size=INPUT,
    )  # fmt: skip
    images = jnp.asarray(pixels(count, SIZE))
    ready = jnp.asarray(pixels(6 * count, INPUT), jnp.float32)
    apply = jax.jit(lambda params, x: MODEL.apply({"params": params}, x).logits)
    crop = jax.jit(lambda x: regions.crop_same(x, regions.region_boxes(0.5), INPUT))
    peer = "the network alone, on ready crops"
    timings = measure.interleaved(
        {
            "ours": lambda: encoder.encode_regions(images),
            peer: lambda: apply(encoder.params, ready),
            "crop": lambda: crop(images),
        },
        2 if quick else 5,
    )
    share = timings["crop"].seconds / timings["ours"].seconds
    return [
        measure.row(
            "encoding, six regions a photo", count, "photos/s", timings, peer=peer, least=0.9,
            limit=by_flops(6 * FLOPS), note=f"batch {count}; the crops alone take {share:.0%}",
        )
    ]  # fmt: skip


def reading(quick: bool) -> list[measure.Row]:
    """Measures reading: JPEGs are decoded and resized to batches of 256 x 256 in threads."""
    rng, count = np.random.default_rng(5), 32 if quick else 256
    files = [inputs.jpeg(rng) for _ in range(16)]
    rows = np.arange(count)
    dataset = data.Dataset(
        name="bench", classes=("a",), ids=rows.astype(np.str_),
        labels=np.ones((count, 1), np.uint8), query=rows[:0], database=rows, train=rows,
        read=lambda row: photos.decode(files[row % 16]),
        sizes=np.zeros((count, 2), np.int32),
    )  # fmt: skip
    peer = "Pillow alone, one thread"

    def alone():
        for row in rows[: count // 4]:
            image = Image.open(io.BytesIO(files[row % 16])).convert("RGB")
            np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR))

    def ours():
        for _ in loader.epoch(dataset, rows, SIZE, 32):
            pass

    batch = pixels(32, SIZE)
    timings = measure.interleaved({"ours": ours, peer: alone}, 2 if quick else 5)
    sent = measure.interleaved({"": lambda: jax.device_put(batch)}, 5)[""].seconds
    return [
        measure.row(
            "reading photos: decode, resize, batch", count, "photos/s", timings, peer=peer,
            peer_work=count // 4,
            note=f"640 x 480, {np.mean([len(x) for x in files]) / 1e3:.0f} kB, resized to 256; "
            f"a batch of 32 goes to the device in {1e3 * sent:.2f} ms",
        )
    ]  # fmt: skip
