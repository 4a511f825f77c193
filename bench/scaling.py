"""Measures how time grows with images, queries, codes per image, bits and devices."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from bench import agents, measure, retrieval, workload
from bench.__main__ import RESULTS
from mch_jax import codes, pairs
from mch_jax.training import paper

IMAGES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
QUERIES = (100, 300, 1000, 3000, 10_000)
BITS = (16, 32, 48, 64, 96, 128)


def reward_seconds(num_train: int, batch_size: int = 64) -> float:
    """Returns the seconds of one batch of rewards, the best of three."""
    train, region, labels = agents.reward_inputs(batch_size, num_train)
    fraction = workload.train_labels(1000).similar_fraction
    table = jnp.asarray(paper.loss_table(workload.OBJECTIVE, workload.NUM_BITS, fraction))
    words, region_words = (codes.from_bytes(x.codes, workload.NUM_BITS) for x in (train, region))
    packed = pairs.pack_labels(labels)
    arguments = jax.device_put(
        (
            words[:batch_size], region_words, packed[:batch_size], np.ascontiguousarray(words.T),
            np.ascontiguousarray(packed.T), np.ones(num_train, np.int32),
        )
    )  # fmt: skip
    rewards = agents.compiled_reward(num_train, table)
    return min(measure.interleaved({"": lambda: rewards(*arguments)}, 3)[""].wall)


DEVICES = """
import json, sys, jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import numpy as np
from bench import agents, measure, workload
from mch_jax.training import paper, parallel
count, num_train = int(sys.argv[1]), 20_000
labels = workload.train_labels(num_train)
rng, size = np.random.default_rng(0), 256
logits = rng.normal(0, 1, (num_train, workload.NUM_BITS)).astype(np.float32)
train_set = jax.device_put(paper.shared_train_set(logits, labels.packed, count))
table = paper.loss_table(workload.OBJECTIVE, workload.NUM_BITS, labels.similar_fraction)
step, _, _ = agents.agent_steps(table, num_train, count)
batch = {"features": rng.random((size, 4096), np.float32), "logits": logits[:size],
    "label_logits": np.zeros((size, 0), np.float32), "labels": labels.packed[:size],
    "conv": workload.conv_features(size)}
batch = parallel.split_batch(batch, count)
params, key = workload.needed_params(False), jax.random.key(0)
call = lambda: step(batch, train_set, params, key)
print(min(measure.interleaved({"": call}, 3)[""].wall))
"""


def device_seconds(count: int) -> float:
    """Returns the seconds of an agent's step on `count` virtual devices that share the cores."""
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, str(count)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def curves(quick: bool) -> dict[str, list[dict]]:
    """Returns the points of the curves in each panel."""
    few = slice(0, 2) if quick else slice(None)
    ours, theirs = retrieval.histogram_seconds, retrieval.flat_seconds

    def both(points, shape):
        made = [{"curve": "ours", "x": x, "seconds": ours(*shape(x))} for x in points]
        flat = [(x, theirs(*shape(x))) for x in points if shape(x)[3] % 8 == 0]
        label = "FAISS IndexBinaryFlat, k = 100"
        return made + [{"curve": label, "x": x, "seconds": s} for x, s in flat if s]

    queries = 100 if quick else 1000
    return {
        "images (1,000 queries x 6 codes, 64 bits)": both(
            IMAGES[few], lambda x: (queries, x, 6, 64)
        ),
        "queries (100,000 images x 6 codes, 64 bits)": both(
            QUERIES[few], lambda x: (x, 10_000 if quick else 100_000, 6, 64)
        ),
        "codes per image (1,000 queries x 100,000 images, 64 bits)": both(
            range(1, 7)[few], lambda x: (queries, 10_000 if quick else 100_000, x, 64)
        ),
        "bits (1,000 queries x 100,000 images x 6 codes)": both(
            BITS[few], lambda x: (queries, 10_000 if quick else 100_000, 6, x)
        ),
        "training images (reward of 64 photos, 64 bits)": [
            {"curve": "ours", "x": x, "seconds": reward_seconds(x)} for x in IMAGES[few]
        ],
        "virtual devices (agent's step, cached convolutions, N = 20,000)": [
            {"curve": "ours", "x": x, "seconds": device_seconds(x)} for x in (1, 2, 4)[few]
        ],
    }


def draw(panels, path) -> None:
    """Draws the panels to a file."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    plot, grid = plt.subplots(2, 3, figsize=(14, 8), layout="constrained")
    for axes, (title, points) in zip(grid.flat, panels.items(), strict=True):
        for name in dict.fromkeys(point["curve"] for point in points):
            x, y = zip(*((p["x"], p["seconds"]) for p in points if p["curve"] == name), strict=True)
            style = {"color": "#2a7f62", "marker": "o"} if name == "ours" else {"marker": "s"}
            axes.plot(x, y, label=name, **style)
        xs = sorted({point["x"] for point in points})
        if xs[-1] / xs[0] >= 50:
            axes.set_xscale("log")
            axes.set_yscale("log")
            first = points[0]
            axes.plot(
                xs, [first["seconds"] * x / first["x"] for x in xs], ":", color="grey",
                label="in proportion",
            )  # fmt: skip
        else:
            axes.set_ylim(bottom=0)
            axes.set_xticks(xs)
        axes.set_xlabel(title, fontsize=9)
        axes.set_ylabel("seconds")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    plot.suptitle(f"Time by size of the input, {measure.num_threads()} cores, best of three")
    plot.savefig(path, dpi=130)
    plt.close(plot)


def scaling(quick: bool) -> list[measure.Row]:
    """Measures the curves; the row compares the largest number of images with the smallest."""
    panels = curves(quick)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "scaling.json").write_text(json.dumps(panels, indent=1) + "\n")
        draw(panels, RESULTS / "scaling.png")
    points = [p for p in next(iter(panels.values())) if p["curve"] == "ours"]
    rate = functools.partial(lambda p: p["x"] / p["seconds"])
    return [
        measure.Row(
            "evaluator at the largest size against the smallest", measure.num_threads(),
            "images/s", rate(points[-1]), rate(points[-1]), rate(points[-1]),
            peer=f"ours at {points[0]['x']:,} images", peer_rate=rate(points[0]),
            ratio=rate(points[-1]) / rate(points[0]),
            note=f"{points[-1]['x']:,} images x 6 codes; all curves are in scaling.png",
        )
    ]  # fmt: skip
