"""The program of launch/gpu_check.sh: correctness against NumPy, speed, and a small training.

The parts are independent: if one fails, its error is recorded and the next one runs.
"""

import json
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import gpu_programs
import jax
import jax.numpy as jnp
import numpy as np

from bench import agents, encoding, inputs, measure, workload
from mch_jax import agent, codes, histograms, metrics, models, pairs, regions
from mch_jax.agent import evidence
from mch_jax.evaluation import evaluate
from mch_jax.files import code_sets
from mch_jax.training import encode

RESULTS = Path(__file__).parent.parent / "bench" / "results"
ON_GPU = jax.default_backend() != "cpu"
HOST = jax.devices("cpu")[0]
BITS = 64


def packing() -> str:
    """Checks packing, unpacking and distances of codes against NumPy."""
    rng = np.random.default_rng(0)
    signs = rng.choice(np.array([-1, 1], np.int8), (500, 77))
    packed = np.asarray(jax.jit(codes.pack)(signs))
    np.testing.assert_array_equal(codes.unpack(packed, 77), signs)
    expected = (signs[:40, None] != signs[None]).sum(2)
    words = jnp.asarray(packed)
    distance = jax.jit(codes.hamming_distance)(words[:40, None], words[None])
    np.testing.assert_array_equal(distance, expected)
    return "equal"


def histogram() -> str:
    """Checks the histograms of distances made on the device and on the host against NumPy."""
    query, database = inputs.retrieval(20, 5000, 6)
    relevant = (query.labels.astype(int) @ database.labels.T) > 0
    plain = metrics.histogram(query.codes, database.codes, database.item, relevant, BITS)
    np.testing.assert_array_equal(evaluate.histogram(query, database), plain)
    ((_, packed),) = code_sets.by_num_codes(database)
    labels = [pairs.pack_labels(x.labels) for x in (query, database)]
    words = codes.from_bytes(query.codes, BITS)
    for on_device in (False, True):
        counts = histograms.label_histogram(
            words, packed, labels[0], np.ascontiguousarray(labels[1].T), BITS, on_device=on_device
        )
        np.testing.assert_array_equal(counts, plain)
    return "equal"


def reward() -> str:
    """Checks the histogram of the reward, and each way to count, against NumPy."""
    train, region, labels = agents.reward_inputs(30, 4000)
    own, other = (codes.from_bytes(x.codes, BITS) for x in (train, region))
    packed = pairs.pack_labels(labels)
    count = np.random.default_rng(0).integers(0, 3, 4000).astype(np.int32)
    result = jax.jit(agent.reward_histogram, static_argnums=6)(
        own[:30, None], other, packed[:30], own.T, packed.T, count, BITS
    )
    expected = np.zeros((30, 2, BITS + 1), int)
    for i in range(30):
        distance = np.bitwise_count(own[i] ^ own).sum(1)
        nearer = np.minimum(distance, np.bitwise_count(other[i] ^ own).sum(1))
        similar = (packed[i] & packed).any(1).astype(int)
        np.add.at(expected[i], (similar, distance), count)
        np.subtract.at(expected[i], (similar, nearer), count)
    np.testing.assert_array_equal(result, expected)
    bins = np.random.default_rng(1).integers(0, 9, 4000).astype(np.int32)
    forms = (codes.counts_by_scatter, codes.counts_by_reduction, codes.weighted_counts)
    for form in forms:
        np.testing.assert_array_equal(
            jax.jit(form, static_argnums=2)(bins, count, 9), np.bincount(bins, count, 9)
        )
    return "equal"


def products() -> str:
    """Checks matrix products against float64, and reports the error of the default precision."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(512, 512)).astype(np.float32) for _ in range(2))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    error = {}
    for name in ("default", "highest"):
        with jax.default_matmul_precision(name):
            found = np.asarray(jax.jit(jnp.matmul)(a, b))
        error[name] = float(np.abs(found - exact).max() / np.abs(exact).max())
    assert error["highest"] < 1e-5, error
    squares = models.squared_distance(jnp.asarray(a), jnp.asarray(b))
    plain = ((a[:, None].astype(np.float64) - b[None]) ** 2).sum(2)
    np.testing.assert_allclose(squares, plain, rtol=1e-4)
    return f"highest {error['highest']:.1e}, default {error['default']:.1e}"


def network() -> str:
    """Checks codes of six regions of images, made on the device, against those of the host."""
    params = jax.device_get(workload.base_params())
    encoder = encode.make_encoder(workload.CONFIG, workload.MODEL, params, {})
    photos = workload.pixels(4, workload.SIZE)
    ours, _ = encoder.encode_regions(photos)
    with jax.default_device(HOST):
        again = encode.make_encoder(workload.CONFIG, workload.MODEL, params, {})
        theirs, _ = again.encode_regions(photos)
    differ = int(np.bitwise_count(ours ^ theirs).sum())
    total = ours[..., 0].size * BITS
    assert differ <= total * 1e-3, f"{differ} of {total} bits differ from the host's"
    return f"{differ} of {total} bits differ from the host's"


def crops() -> str:
    """Checks crops of images against Pillow's antialiased resizing."""
    from PIL import Image

    rng = np.random.default_rng(0)
    photo = np.asarray(
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((256, 256))
    )
    whole = regions.crop(jnp.asarray(photo)[None], jnp.asarray(regions.WHOLE)[None], 224)
    resized = Image.fromarray(photo).resize((224, 224), Image.Resampling.BILINEAR)
    gap = np.abs(np.asarray(whole)[0] - np.asarray(resized)).max()
    assert gap < 1.5, gap
    return f"{gap:.2f} of 255 at most"


def expectations() -> str:
    """Checks the evidence that the agent sees, made on the device, against that of the host."""
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 2**32, (5, 6, 2), np.uint32)
    reference = evidence.reference(
        rng.integers(0, 2**32, (300, 2), np.uint32), inputs.labels(rng, 300), BITS, 0.2
    )
    similarity = rng.random((5, 300), np.float32)
    here = np.asarray(evidence.rewards(packed, similarity, reference))
    with jax.default_device(HOST), jax.default_matmul_precision("highest"):
        there = np.asarray(evidence.rewards(packed, similarity, reference))
    gap = np.abs(here - there).max() / np.abs(there).max()
    assert gap < (1e-2 if ON_GPU else 1e-6), gap
    return f"{gap:.1e} relative to the host"


def roofline() -> dict[str, float]:
    """Returns the device's highest rates of matrix products and of copies."""
    size = 8192 if ON_GPU else 1024
    result = {}
    for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16)):
        x = jnp.ones((size, size), dtype)
        product = jax.jit(jnp.matmul)
        timing = measure.interleaved({"": lambda f=product, x=x: f(x, x)}, 5)[""]
        result[f"{name} TFLOP/s"] = 2 * size**3 / min(timing.wall) / 1e12
    x = jnp.ones(1 << (28 if ON_GPU else 24), jnp.float32)
    add = jax.jit(lambda x: x + 1)
    result["copy GB/s"] = 2 * x.nbytes / min(measure.interleaved({"": lambda: add(x)}, 5)[""].wall)
    result["copy GB/s"] /= 1e9
    return result


def speed(limits: dict[str, float]) -> list[dict[str, Any]]:
    """Measures AlexNet, the evaluator and the reward, also as shares of the device's limits."""
    rows, params = [], workload.base_params()
    count = 256 if ON_GPU else 4
    images = jnp.asarray(workload.pixels(count, workload.INPUT), jnp.float32)
    for name in models.CONV_DTYPES:
        model = workload.MODEL.clone(conv_dtype=name)

        def loss(params, x, apply=model.apply):
            return jnp.mean(apply({"params": params}, x).logits ** 2)

        forward, backward = jax.jit(loss), jax.jit(jax.grad(loss))
        calls = {
            "forward": lambda f=forward, p=params, x=images: f(p, x),
            "forward and backward": lambda f=backward, p=params, x=images: f(p, x),
        }
        for title, timing in measure.interleaved(calls, 5 if ON_GPU else 2).items():
            rate = count / timing.seconds
            flops = rate * workload.FLOPS * (3 if "back" in title else 1)
            rows.append(
                {
                    "bench": f"AlexNet {title}, {name} convolutions, batch {count}", "rate": rate,
                    "unit": "images/s", "share": flops / 1e12 / limits[f"{name} TFLOP/s"],
                    "limit": f"product of large {name} matrices",
                }
            )  # fmt: skip
    from bench import retrieval

    for row in (*retrieval.device_histogram(not ON_GPU), *agents.reward(not ON_GPU),
                *encoding.encoding(not ON_GPU)):  # fmt: skip
        rows.append(
            {"bench": row.bench, "rate": row.rate, "unit": row.unit, "share": row.share,
             "limit": row.limit, "peer": row.peer, "ratio": row.ratio, "note": row.note}
        )  # fmt: skip
    return rows


def training() -> dict[str, Any]:
    """Runs all stages on a few scenes and returns the measures."""
    from configs import scenes_dch
    from mch_jax import pipeline

    config: Any = scenes_dch.get_config()
    config.model.weights = ""
    config.dataset.settings = {"num_train": 160, "num_database": 160, "num_query": 40}
    config.base.update(train_conv=ON_GPU, num_epochs=3, batch_size=32)
    config.agent.update(num_steps=30, batch_size=32)
    config.model.update(width=1.0 if ON_GPU else 0.25)
    with tempfile.TemporaryDirectory() as workdir:
        results = pipeline.run_stages(config, Path(workdir))
    assert results is not None
    return {"chance_map": results["chance_map"], "base": results["base"]["map"],
            "mch": results["mch"]["map"], "anhc": results["mch"]["anhc"]}  # fmt: skip


def main() -> int:
    """Runs every part and writes the results; returns 1 if a part failed, else 0."""
    began, record, failed = time.perf_counter(), {}, []

    def part(name: str, call: Any, *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            result = call(*arguments)
        except Exception as error:  # noqa: BLE001  the next part has to run
            traceback.print_exc()
            failed.append(name)
            result = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{name}: {result} ({time.perf_counter() - start:.1f} s)", flush=True)
        return result

    device = jax.devices()[0].device_kind
    record["device"], record["jax"] = device, jax.__version__
    print(f"device: {device}, {jax.default_backend()}, jax {jax.__version__}", flush=True)
    if not ON_GPU:
        print("no GPU: large inputs, the share of its peak and TF32 are left out", flush=True)
        record["left out"] = "no GPU: large inputs, the share of its peak, TF32"
        gpu_programs.use_small_programs()
    parts = (packing, histogram, reward, products, network, crops, expectations)
    record["correctness"] = {x.__name__: part(x.__name__, x) for x in parts}
    limits = record["limits"] = part("roofline", roofline)
    if isinstance(limits, dict):
        record["speed"] = part("speed", speed, limits)
        record["bounds"] = part("bounds", gpu_programs.bounds, limits)
    for name in ("sharded", "precision", "exported"):
        record[name] = part(name, getattr(gpu_programs, name))
    record["training"] = part("training", training)
    record["seconds"], record["failed"] = time.perf_counter() - began, failed
    name = re.sub("[^a-z0-9]+", "-", device.lower()).strip("-") if ON_GPU else "none"
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"gpu-{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{path}: {len(failed)} parts failed, {record['seconds']:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
