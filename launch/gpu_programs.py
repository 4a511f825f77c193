"""Parts of `gpu_check.py` that run whole programs: bounds, `shard_map`, precision, export."""

import time
from typing import Any

import aot_programs
import jax
import jax.numpy as jnp
import numpy as np
from aot_check import PEAKS, cost
from jax import export

from bench import workload
from mch_jax import codes, program
from mch_jax.training import encode, parallel

ON_GPU = jax.default_backend() != "cpu"
# Published peaks by the name of the device: dense bfloat16 operations and bytes per second.
DEVICES = {"H100": PEAKS["h100"], "H200": (989e12, 4800e9)}
ROUNDS = 3
SMALL = {"BATCH": 8, "NUM_TRAIN": 400, "NUM_ITEMS": 2000, "NUM_QUERIES": 50}  # without a GPU


def use_small_programs() -> None:
    """Makes the programs small enough for a CPU."""
    for name, value in SMALL.items():
        setattr(aot_programs, name, value)


def made_up(lowered: Any) -> tuple[Any, ...]:
    """Returns random arguments of a lowered program."""
    rng = np.random.default_rng(0)

    def array(info: Any) -> Any:
        if jnp.issubdtype(info.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if jnp.issubdtype(info.dtype, jnp.floating):
            return np.abs(rng.normal(0, 1e-3, info.shape)).astype(info.dtype)
        if info.dtype == jnp.int32:  # counters and counts
            return np.zeros(info.shape, np.int32)
        high = np.iinfo(info.dtype).max
        return rng.integers(0, high, info.shape, info.dtype, endpoint=True)

    return jax.tree.map(array, lowered.args_info[0])


def seconds(lowered: Any, compiled: Any) -> float:
    """Returns the shortest time of a call on random arguments that are on the device already."""
    arguments = list(jax.device_put(made_up(lowered), compiled.input_shardings[0]))
    donates = any(info.donated for info in jax.tree.leaves(lowered.args_info[0][0]))
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        result = jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
        if donates:
            arguments[0] = result[0]
    return min(times[1:])


def bounds(limits: dict[str, float]) -> list[dict[str, Any]]:
    """Measures every program of `aot_check.py` on one device, beside the bound of its roofline.

    The peaks are the published ones of the device or, for one that is not known, the highest rates
    that were measured before.

    Args:
      limits: The measured rates of products and copies.
    """
    kind = jax.devices()[0].device_kind
    known = next((peaks for name, peaks in DEVICES.items() if name in kind), None)
    most = max(limits["float32 TFLOP/s"], limits["bfloat16 TFLOP/s"]) * 1e12
    peak, bandwidth = known or (most, limits["copy GB/s"] * 1e9)
    rows = []
    for name, make in aot_programs.PROGRAMS.items():
        start = time.perf_counter()
        lowered = make(jax.devices()[:1])
        compiled = lowered.compile()
        compiling = time.perf_counter() - start
        flops, moved = cost(lowered, compiled)
        row = {
            "program": name, "compiling": compiling, "seconds": seconds(lowered, compiled),
            "compute_seconds": flops / peak, "memory_seconds": moved / bandwidth,
        }  # fmt: skip
        row["ratio"] = row["seconds"] / max(row["compute_seconds"], row["memory_seconds"])
        rows.append(row)
        text = f"{row['seconds']:.5f} s, {row['ratio']:.2f} times the bound"
        print(f"  {name}: {text}", flush=True)
    wrong = [row["program"] for row in rows if row["ratio"] < 1]
    assert not known or not wrong, f"faster than the bound: {wrong}"
    return rows


def sharded() -> str:
    """Checks that the steps of training give the same under `shard_map` as under `pmap`."""
    checked, pmapped = [], parallel.mapped_over
    devices = jax.local_devices()
    devices = devices[: parallel.usable_devices(aot_programs.BATCH)]
    for name in ("base_step_cached", "agent_step_cached", "cross_fit_step"):
        results = []
        try:
            for over in (pmapped, parallel.sharded_over):
                parallel.mapped_over = over
                lowered = aot_programs.PROGRAMS[name](devices)
                results.append(jax.device_get(lowered.compile()(*made_up(lowered))))
        finally:
            parallel.mapped_over = pmapped
        jax.tree.map(np.testing.assert_array_equal, *results)
        checked.append(name)
    return f"equal on {len(devices)} devices: {', '.join(checked)}"


def precision() -> dict[str, float]:
    """Returns the share of bits that change if products are not computed in full precision.

    The network is random; `launch/precision.py` measures trained ones.
    """
    model, params = workload.MODEL, workload.base_params()
    coarse = np.random.default_rng(0).uniform(0, 255, (256 if ON_GPU else 16, 8, 8, 3))
    images = jax.image.resize(coarse, (len(coarse), workload.INPUT, workload.INPUT, 3), "linear")

    def words(precision: str, conv_dtype: str) -> np.ndarray:
        with jax.default_matmul_precision(precision):
            apply = jax.jit(model.clone(conv_dtype=conv_dtype).apply)
            logits = apply({"params": params}, images).logits
        # Logits of a random network are nearly the same for all images.
        return np.asarray(codes.pack(codes.sign(logits - jnp.median(logits, 0)[None])))

    exact = words("highest", "float32")
    kinds = {
        "TF32": ("tensorfloat32", "float32"),
        "bfloat16 convolutions": ("highest", "bfloat16"),
        "bfloat16": ("bfloat16", "bfloat16"),
    }
    total = len(images) * workload.NUM_BITS
    return {
        name: float(np.bitwise_count(words(*kind) ^ exact).sum() / total)
        for name, kind in kinds.items()
    }


def exported() -> str:
    """Checks that the exported encoder, read again, gives the codes of the encoder."""
    params = jax.device_get(workload.base_params())
    encoder = encode.make_encoder(workload.CONFIG, workload.MODEL, params, {})
    photos = workload.pixels(4, workload.SIZE)
    ours, _ = encoder.encode_regions(photos)
    read = export.deserialize(bytearray(program.serialize(encoder)))
    theirs = np.asarray(jax.jit(read.call)(photos)[0])
    differ = int(np.bitwise_count(codes.to_bytes(ours, workload.NUM_BITS) ^ theirs).sum())
    total = theirs[..., 0].size * workload.NUM_BITS
    assert differ <= total * 1e-3, f"{differ} of {total} bits differ from the encoder's"
    return f"{differ} of {total} bits differ from the encoder's"
