"""Compiles the project's programs for accelerators that this machine does not have.

The real compilers run without a device: XLA for TPU from `libtpu`, XLA for CUDA from the plugin of
JAX. The result is a JSON list with a row for each program and target. Nothing is executed.

    python -m pip install -e '.[aot]'
    python launch/aot_check.py --targets=v5e-4,h100-4 --out=aot.json
"""

import argparse
import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mch_jax.files import whole

NUM_TRAIN, NUM_ITEMS, NUM_QUERIES = 10_000, 117_218, 5_000
BATCH, NUM_BITS, NUM_CLASSES = 256, 64, 80
SIMILAR_FRACTION = 0.35  # about that of COCO; a constant of the programs
COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
    "reduce-scatter",
)  # fmt: skip
TARGETS = {
    "v5e-4": ("tpu", "v5e:2x2", 4),
    "v6e-4": ("tpu", "v6e:2x2", 4),
    "h100-1": ("cuda", "1x1x1", 1),
    "h100-4": ("cuda", "1x1x4", 4),
}
# Published peaks of one device: dense bfloat16 operations and bytes of memory per second.
PEAKS = {"v5e": (197e12, 819e9), "v6e": (918e12, 1638e9), "h100": (989e12, 3350e9)}
ACCELERATOR_TYPES = {"v5e-4": "v5litepod-4", "v6e-4": "v6e-4"}
PACKAGES = {
    "tpu": {"libtpu": "libtpu"},
    "cuda": {
        "jax_plugins.xla_cuda13": "jax-cuda13-pjrt",
        "jax_cuda13_plugin": "jax-cuda13-plugin",
    },
}
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 85000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def settings() -> Any:
    """Returns the default config with the sizes of this check."""
    from configs import default

    config: Any = default.get_config()
    config.num_bits, config.base.batch_size, config.agent.batch_size = NUM_BITS, BATCH, BATCH
    return config


def array(shape: tuple[int, ...], dtype: Any = "float32") -> Any:
    """Returns an abstract array."""
    import jax

    return jax.ShapeDtypeStruct(shape, dtype)


def key() -> Any:
    """Returns an abstract random key."""
    import jax

    return jax.eval_shape(lambda: jax.random.key(0))


def network() -> tuple[Any, Any]:
    """Returns AlexNet with its abstract parameters."""
    import jax

    from mch_jax.models import AlexNet

    model = AlexNet(NUM_BITS)
    made = jax.eval_shape(model.init, key(), array((1, 224, 224, 3)))
    return model, made["params"]


def inputs(cached: bool, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns abstract photos, or their convolutional features."""
    if cached:
        return {"conv": array((*shape, 9216), "float16")}
    return {"image": array((*shape, 256, 256, 3), "uint8")}


def labels(*shape: int) -> Any:
    """Returns abstract packed labels."""
    return array((*shape, -(-NUM_CLASSES // 32)), "uint32")


def words(*shape: int) -> Any:
    """Returns abstract packed codes."""
    return array((*shape, NUM_BITS // 32), "uint32")


def base_step(devices: Any, cached: bool = False) -> Any:
    """Lowers a training step of DCH on photos, or on features of fixed convolutions."""
    import jax

    from mch_jax import methods, models
    from mch_jax.training import base, base_step, parallel

    config, num_steps, n = settings(), 1000, len(devices)
    model, params = network()
    params = models.without_convolutions(params) if cached else params
    tx = base.optimizer(config.base, num_steps)
    loss_fn = functools.partial(
        base_step.objective_loss, model=model, objective=methods.objective("dch", NUM_BITS),
        similar_fraction=SIMILAR_FRACTION, num_classes=NUM_CLASSES, dropout=True, label_weight=0.0,
    )  # fmt: skip
    step = functools.partial(
        base_step.train_step, loss_fn=loss_fn, prepare=base.preparation(config), tx=tx,
        num_steps=num_steps,
    )  # fmt: skip
    state = jax.eval_shape(lambda p: base_step.initial_state(p, tx), params)
    each = (n, BATCH // n)
    batch = {**inputs(cached, each), "labels": labels(*each)}
    over = parallel.mapped_over(step, (None, 0, None, None), devices)
    return over.lower(state, batch, key(), {})


def train_set(n: int) -> dict[str, Any]:
    """Returns the abstract training set, split over n devices, as `paper.shared_train_set` does."""
    part = -(-NUM_TRAIN // n)
    packed, packed_labels = words(1).shape[-1], labels(1).shape[-1]
    return {
        "packed": array((n, packed, part), "uint32"),
        "labels": array((n, packed_labels, part), "uint32"),
        "count": array((n, part), "int32"),
    }


def encodings(n: int) -> Any:
    """Returns abstract encodings of a batch, split over n devices."""
    from mch_jax.codes import Encoding

    each = (n, BATCH // n)
    return Encoding(array((*each, 4096)), array((*each, NUM_BITS)), array((*each, 0)))


def loss_table() -> Any:
    """Returns the loss at each distance."""
    from mch_jax import methods
    from mch_jax.training import paper

    return paper.loss_table(methods.objective("dch", NUM_BITS), NUM_BITS, SIMILAR_FRACTION)


def agent_step(devices: Any, cached: bool = False) -> Any:
    """Lowers a training step of the agent by the paper's recipe."""
    import jax

    from mch_jax import models
    from mch_jax.agent import state as agent_state
    from mch_jax.training import paper, parallel, policy

    config, n = settings(), len(devices)
    model, params = network()
    params = models.without_convolutions(params) if cached else params
    tx = policy.optimizer(config)
    step = functools.partial(
        paper.train_step, model=model, crop_ratio=config.encode.crop_ratio, input_size=224,
        loss_table=loss_table(), num_train=NUM_TRAIN, update=policy.update(config, tx),
    )  # fmt: skip
    width = agent_state.width(4096, NUM_BITS)
    state = jax.eval_shape(lambda: policy.initial_state(config, width, tx))
    each = (n, BATCH // n)
    batch = {**inputs(cached, each), **encodings(n)._asdict(), "labels": labels(*each)}
    over = parallel.mapped_over(step, (None, 0, 0, None, None), devices)
    return over.lower(state, batch, train_set(n), params, key())


def cross_fit_step(devices: Any) -> Any:
    """Lowers a training step of the agent by the cross-fitted recipe."""
    import jax

    from mch_jax.agent import evidence
    from mch_jax.training import cross_fit, parallel, policy

    config, n, width = settings(), len(devices), len(evidence.NAMES)
    tx = policy.optimizer(config)
    step = functools.partial(cross_fit.train_step, update=policy.update(config, tx))
    state = jax.eval_shape(lambda: policy.initial_state(config, width, tx))
    each = (n, BATCH // n)
    batch = {"state": array((*each, width)), "reward": array(each)}
    return parallel.mapped_over(step, (None, 0, None), devices).lower(state, batch, key())


def reward(devices: Any) -> Any:
    """Lowers the rewards of a batch against the training set on all devices (Eq. 6)."""
    import jax

    from mch_jax.training import paper, parallel

    n, table = len(devices), loss_table()

    def rewards(image, region, batch_labels, shared):
        own = paper.sharded_rewards(image, region, batch_labels, shared, table, NUM_TRAIN, NUM_BITS)
        return jax.lax.all_gather(own, parallel.AXIS, tiled=True)

    over = parallel.mapped_over(rewards, (0, 0, 0, 0), devices, ())
    return over.lower(encodings(n), encodings(n), labels(n, BATCH // n), train_set(n))


def on_one(function: Any, devices: Any, *arguments: Any, **static: Any) -> Any:
    """Lowers a jitted function of abstract arrays on the first device."""
    import jax
    import numpy as np

    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("one",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments
    )
    return function.lower(*placed, **static)


def encoder(devices: Any) -> Any:
    """Lowers the encoding of six regions of a batch of photos, with the policy."""
    import jax

    from mch_jax.agent import state as agent_state
    from mch_jax.encoder import Encoder
    from mch_jax.training import policy

    config = settings()
    model, params = network()
    actor, width = policy.network(config), agent_state.width(4096, NUM_BITS)
    variables = dict(jax.eval_shape(actor.init, key(), array((1, width))))
    made = Encoder(model, params, actor, variables, 0.5, 0.5, 256, 224)
    images = inputs(False, (BATCH,))["image"]
    return on_one(made._encode, devices, params, variables, images, num_regions=6)


def evaluator(devices: Any) -> Any:
    """Lowers the histograms of COCO's queries against its database, with six codes per photo."""
    from mch_jax import histograms

    lw = labels(1).shape[-1]
    return on_one(
        histograms._device_histogram, devices, words(NUM_QUERIES),
        array((6, NUM_BITS // 32, NUM_ITEMS), "uint32"), labels(NUM_QUERIES),
        array((lw, NUM_ITEMS), "uint32"), num_bits=NUM_BITS,
    )  # fmt: skip


def evidence(devices: Any) -> Any:
    """Lowers the evidence of a batch of photos against the training set."""
    from mch_jax.agent import evidence

    reference = evidence.Reference(
        words(NUM_TRAIN), array((NUM_TRAIN, NUM_CLASSES), "uint8"),
        array((NUM_TRAIN, 2, NUM_BITS + 1)),
    )  # fmt: skip
    width = evidence.POSTERIOR_WIDTH
    calibration = {
        "shared": array((width,)), "own": array((NUM_CLASSES, width)), "bias": array((NUM_CLASSES,))
    }  # fmt: skip
    return on_one(
        evidence.states, devices, words(BATCH, 6), array((BATCH, 6, NUM_BITS)),
        array((BATCH, 6, NUM_CLASSES)), calibration, reference,
    )  # fmt: skip


PROGRAMS = {
    "reward": reward,
    "evidence": evidence,
    "evaluator": evaluator,
    "agent_step_cached": functools.partial(agent_step, cached=True),
    "cross_fit_step": cross_fit_step,
    "agent_step": agent_step,
    "encoder": encoder,
    "base_step_cached": functools.partial(base_step, cached=True),
    "base_step": base_step,
}


def missing(target: str) -> str | None:
    """Returns the name of the first package that a target needs and that is not installed."""
    for module, package in PACKAGES[TARGETS[target][0]].items():
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return package
    return None


def devices_of(target: str) -> Any:
    """Returns the devices of a target, which can be compiled for but not used."""
    from jax.experimental import topologies

    platform, topology, _ = TARGETS[target]
    if platform == "tpu":
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    else:
        found = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=topology)
    return list(found.devices)


def count(text: str, names: Iterable[str]) -> dict[str, int]:
    """Returns how often each instruction occurs in a compiled program, a `-start` counted once."""
    return {name: len(re.findall(rf"[ )]{name}(?:-start)?\(", text)) for name in names}


def product_types(text: str) -> dict[str, int]:
    """Returns how many products a compiled program has of each type, such as `bf16,bf16->f32`.

    Products are `dot` and `convolution`, and calls of cuBLAS and of cuDNN's convolutions.
    """
    defined = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = \(?(\w+)\[.*?[ )]([\w-]+)\((.*)", re.M)
    types, products = {}, []
    for name, dtype, operation, rest in defined.findall(text):
        types[name] = dtype
        called = re.search(r'custom_call_target="__(cublas|cudnn\$conv)', rest)
        if operation in ("dot", "convolution") or called:
            operands = re.findall(r"(?:(\w+)\[[^ ]* )?%?([\w.-]+)", rest.partition(")")[0])
            products.append((operands[:2], dtype))
    found: dict[str, int] = {}
    for operands, dtype in products:
        kinds = ",".join(given or types.get(name, "?") for given, name in operands)
        found[f"{kinds}->{dtype}"] = found.get(f"{kinds}->{dtype}", 0) + 1
    return found


def text_fields(text: str) -> dict[str, Any]:
    """Returns the fields of a row that are read from the text of a compiled program."""
    found = count(text, ("copy", "scatter"))
    return {
        "collectives": count(text, COLLECTIVES), "copies": found["copy"],
        "scatters": found["scatter"], "products": product_types(text),
    }  # fmt: skip


def read_text(compiled: Any) -> tuple[dict[str, Any], str | None]:
    """Returns `text_fields`, or None for each and why the program's text cannot be read."""
    try:
        return text_fields(compiled.as_text()), None
    except Exception as error:  # noqa: BLE001  (jaxlib may be older than the compiler)
        unread = f"compiled, but its text cannot be read: {whole.first_line(error)}"
        return dict.fromkeys(text_fields("")), unread


def roofline(target: str, flops: float | None, moved: float | None) -> dict[str, float | None]:
    """Returns the least seconds that the operations and the memory of one device allow."""
    peak, bandwidth = PEAKS[target.partition("-")[0]]
    return {
        "compute_seconds": None if flops is None else flops / peak,
        "memory_seconds": None if moved is None else moved / bandwidth,
    }


def empty_row(program: str, target: str, error: str) -> dict[str, Any]:
    """Returns the row of a program that was not compiled."""
    return {
        "program": program, "target": target, "ok": False, "error": error, "seconds": None,
        "temp_bytes": None, "argument_bytes": None, "peak_bytes": None, "flops": None,
        "bytes": None, **roofline(target, None, None), **dict.fromkeys(text_fields("")),
        "collectives": {},
    }  # fmt: skip


def compiled_row(program: str, target: str) -> dict[str, Any]:
    """Compiles a program in this process and returns its row."""
    start = time.monotonic()
    compiled = PROGRAMS[program](devices_of(target)).compile()
    seconds = round(time.monotonic() - start, 1)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    flops, moved = cost.get("flops"), cost.get("bytes accessed")
    fields, unread = read_text(compiled)
    return {
        **empty_row(program, target, ""), "ok": True, "error": unread, "seconds": seconds,
        "temp_bytes": memory.temp_size_in_bytes, "argument_bytes": memory.argument_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes, "flops": flops, "bytes": moved,
        **roofline(target, flops, moved), **fields,
    }  # fmt: skip


def child(program: str, target: str) -> None:
    """Prints the row of a program on the last line."""
    try:
        row = compiled_row(program, target)
    except Exception as error:  # noqa: BLE001  (any error of a compiler belongs in the row)
        row = empty_row(program, target, f"{type(error).__name__}: {whole.first_line(error)}")
    print(json.dumps(row), flush=True)  # noqa: T201


def environment(target: str) -> dict[str, str]:
    """Returns the environment of a process that compiles for a target."""
    root = str(Path(__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    result = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    if target in ACCELERATOR_TYPES:
        result |= {
            "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_ACCELERATOR_TYPE": ACCELERATOR_TYPES[target],
        }  # fmt: skip
    else:
        # Without a device nothing can be tuned, and Triton's products need tuning.
        flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
        result["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return result


def check(program: str, target: str, timeout: float) -> dict[str, Any]:
    """Returns the row of a program, compiled in a process of its own."""
    package = missing(target)
    if package:
        return empty_row(program, target, f"{package} is not installed: pip install {package}")
    command = [sys.executable, __file__, "--child", f"--programs={program}", f"--targets={target}"]
    try:
        done = subprocess.run(
            command, env=environment(target), capture_output=True, text=True, check=False,
            timeout=timeout,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return empty_row(program, target, f"not compiled within {timeout:g} seconds")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip() or "no message").splitlines()[-1][:500]
        return empty_row(program, target, f"the compiler ended with {done.returncode}: {last}")
    return json.loads(lines[-1])


def chosen(kind: str, text: str, choices: Any) -> list[str]:
    """Returns the names of a comma-separated list, or ends the program at an unknown one."""
    names = [name for name in text.split(",") if name] if text else list(choices)
    for name in names:
        if name not in choices:
            sys.stderr.write(f"unknown {kind} {name!r}; choices: {', '.join(choices)}\n")
            raise SystemExit(2)
    return names


def main() -> int:
    """Returns 0 if every program compiled, and 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--programs", default="", help=f"of {','.join(PROGRAMS)}; default: all")
    parser.add_argument("--targets", default="", help=f"of {','.join(TARGETS)}; default: all")
    parser.add_argument("--out", help="file of the rows; they are printed otherwise")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for each program")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    programs = chosen("program", arguments.programs, PROGRAMS)
    targets = chosen("target", arguments.targets, TARGETS)
    if arguments.child:
        child(programs[0], targets[0])
        return 0
    rows = []
    for target in targets:
        for program in programs:
            rows.append(check(program, target, arguments.timeout))
            sys.stderr.write(f"{target} {program}: {rows[-1]['error'] or 'ok'}\n")
            if arguments.out:
                whole.write_json(arguments.out, rows)
    if not arguments.out:
        print(json.dumps(rows, indent=1))  # noqa: T201
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
