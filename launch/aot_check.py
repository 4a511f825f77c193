"""Compiles the project's programs for accelerators that this machine does not have.

The real compilers run without a device: XLA for TPU from `libtpu`, XLA for CUDA from the plugin of
JAX. The result is a JSON list with a row for each program and target. Nothing is executed. If the
file of the result exists, its rows of other programs and targets are kept.

    python -m pip install -e '.[aot]'
    python launch/aot_check.py --targets=v5e-4,h100-4 --out=aot.json
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aot_programs import PROGRAMS, training_bytes

from mch_jax.files import whole

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


def moved_arrays(text: str) -> list[dict[str, Any]]:
    """Returns what each collective of a compiled program moves.

    Each has its `name`, the `arrays` of its result, their `bytes` on one device, and the `source`,
    the operation of the program that it stems from, or None for one that the compiler put together.
    """
    found = []
    names = "|".join(COLLECTIVES)
    for line in text.splitlines():
        match = re.search(rf" = (.*?[)}}\]]) ({names})(-start)?\(", line)
        if not match:
            continue
        result, name, starts = match.groups()
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
        if starts and name != "all-reduce":  # the operands come first, then the results
            arrays = arrays[len(arrays) // 2 :]
        size = sum(
            int(re.sub(r"\D", "", dtype) or 8) // 8
            * functools.reduce(int.__mul__, map(int, filter(None, shape.split(","))), 1)
            for dtype, shape in arrays
        )  # fmt: skip
        source = re.search(r'op_name="([^"]*)"', line)
        found.append(
            {
                "name": name, "arrays": [f"{dtype}[{shape}]" for dtype, shape in arrays],
                "bytes": size, "source": source[1] if source else None,
            }
        )  # fmt: skip
    return found


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
        "collectives": count(text, COLLECTIVES), "moved": moved_arrays(text),
        "copies": found["copy"],
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


def counted(module: Any) -> Mapping[str, float]:
    """Returns the operations and bytes of a module, as XLA counts them without its compiler."""
    import jax
    from jax._src.lib import xla_client

    return xla_client._xla.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)


def cost(lowered: Any, compiled: Any) -> tuple[float, float]:
    """Returns the operations and the moved bytes of one device.

    They are the compiler's own. If it has none, the operations are those of the program before
    compilation, because products are calls of libraries afterwards.
    """
    found = compiled.cost_analysis()
    if found:
        found = found[0] if isinstance(found, list) else found
        return found["flops"], found["bytes accessed"]
    module = compiled.runtime_executable().hlo_modules()[0]
    before = lowered.compiler_ir("hlo").as_hlo_module()
    return counted(before)["flops"], counted(module)["bytes accessed"]


def versions(target: str) -> dict[str, str]:
    """Returns the versions of JAX and of a target's compiler."""
    names = ("jax", "jaxlib", *PACKAGES[TARGETS[target][0]].values())
    return {name: importlib.metadata.version(name) for name in names}


def empty_row(program: str, target: str, error: str) -> dict[str, Any]:
    """Returns the row of a program that was not compiled."""
    return {
        "program": program, "target": target, "ok": False, "error": error, "seconds": None,
        "temp_bytes": None, "argument_bytes": None, "peak_bytes": None, "flops": None,
        "bytes": None, **roofline(target, None, None), **dict.fromkeys(text_fields("")),
        "collectives": {}, "state_bytes": None, "activation_bytes": None, "versions": {},
    }  # fmt: skip


def compiled_row(program: str, target: str) -> dict[str, Any]:
    """Compiles a program in this process and returns its row."""
    start, devices = time.monotonic(), devices_of(target)
    lowered = PROGRAMS[program](devices)
    compiled = lowered.compile()
    seconds = round(time.monotonic() - start, 1)
    memory, (flops, moved) = compiled.memory_analysis(), cost(lowered, compiled)
    fields, unread = read_text(compiled)
    return {
        **empty_row(program, target, ""), "ok": True, "error": unread, "seconds": seconds,
        "temp_bytes": memory.temp_size_in_bytes, "argument_bytes": memory.argument_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes, "flops": flops, "bytes": moved,
        **roofline(target, flops, moved), **fields, **training_bytes(program, len(devices)),
        "versions": versions(target),
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


def earlier_rows(path: str | None) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the rows that the file of the result has, by target and program."""
    found = Path(path) if path else None
    if found is None or not found.exists():
        return {}
    try:
        return {(row["target"], row["program"]): row for row in json.loads(found.read_text())}
    except (ValueError, TypeError, KeyError):
        sys.stderr.write(f"{path} is not a list of rows; expected one, or a new file: --out=FILE\n")
        raise SystemExit(2) from None


def in_order(rows: Mapping[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows in the order of targets and programs."""
    names = [(target, program) for target in TARGETS for program in PROGRAMS]
    return [rows[name] for name in names if name in rows]


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
    rows, failed = earlier_rows(arguments.out), False
    for target in targets:
        for program in programs:
            row = check(program, target, arguments.timeout)
            sys.stderr.write(f"{target} {program}: {row['error'] or 'ok'}\n")
            rows, failed = rows | {(target, program): row}, failed or not row["ok"]
            if arguments.out:
                whole.write_json(arguments.out, in_order(rows))
    if not arguments.out:
        print(json.dumps(in_order(rows), indent=1))  # noqa: T201
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
