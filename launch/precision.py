"""Counts the bits of codes that change when products are computed in TF32 or bfloat16, on the CPU.

    python launch/precision.py --run=runs/coco18/coco18_dch_32_0 --root=COCO18 --out=precision.json

TF32 and bfloat16 heads are simulated: the inputs and the weights of a layer are rounded to 10 or 7
bits after the leading one, and products are summed in float32, as tensor cores do. Convolutions in
bfloat16 are those of `model.conv_dtype`. Crops, evidence and batch norm stay in float32.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mch_jax import data, metrics, regions
from mch_jax.data import loader
from mch_jax.encoder import Encoder, RegionOutputs
from mch_jax.evaluation import evaluate
from mch_jax.files import code_sets, read_json, whole
from mch_jax.models import CONV_LAYERS
from mch_jax.training import features

MANTISSA = {"TF32": 10, "bfloat16": 7}  # bits after the leading one
CONVOLUTIONS = tuple(name for name, *_ in CONV_LAYERS)
BATCH = 16


def rounded(x: Float[Array, "..."], bits: int) -> Float[Array, "..."]:
    """Returns float32 numbers rounded to so many mantissa bits, ties to even."""
    dropped = 23 - bits
    words = jax.lax.bitcast_convert_type(x, jnp.uint32)
    half = (1 << (dropped - 1)) - 1
    words = words + half + ((words >> dropped) & 1)
    words = (words >> dropped) << dropped
    return jax.lax.bitcast_convert_type(words, jnp.float32)


def rounding(bits: int, convolutions: bool) -> Any:
    """Returns a context in which convolutions, or else dense layers, round inputs and weights."""
    kind = nn.Conv if convolutions else nn.Dense

    def call(function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        module = context.module
        if isinstance(module, kind) and context.method_name == "__call__":
            arguments = (rounded(arguments[0], bits), *arguments[1:])
        return function(*arguments, **keywords)

    return nn.intercept_methods(call)


def rounded_kernels(variables: Mapping[str, Any], bits: int) -> dict[str, Any]:
    """Returns variables with the kernels of all layers rounded."""

    def leaf(path: Any, x: Any) -> Any:
        is_kernel = getattr(path[-1], "key", None) == "kernel"
        return np.asarray(rounded(jnp.asarray(x), bits)) if is_kernel else x

    return jax.tree_util.tree_map_with_path(leaf, variables)


def conv_features(
    encoder: Encoder, dataset: data.Dataset, rows: np.ndarray, name: str, cache: Path
) -> Float[np.ndarray, "n 6 k"]:
    """Returns the convolutions' features of six regions of photos, computed in a type.

    Args:
      encoder: The encoder.
      dataset: The data set of the photos.
      rows: Their rows.
      name: `float32`, or a key of MANTISSA.
      cache: Folder in which the features are kept for another call.
    """
    params = {layer: encoder.params[layer] for layer in CONVOLUTIONS}
    path = cache / f"{name}-{features.fingerprint(params, rows, dataset.ids[rows])}.npy"
    if path.exists():
        return np.load(path)
    model = encoder.model.clone(conv_dtype="bfloat16" if name == "bfloat16" else "float32")
    params = rounded_kernels(params, MANTISSA["TF32"]) if name == "TF32" else params
    boxes = regions.region_boxes(encoder.crop_ratio)

    @jax.jit
    def extract(images: Array) -> Any:
        with jax.default_matmul_precision("highest"):
            crops = regions.crop_same(images, boxes, encoder.input_size)
            flat = crops.reshape(-1, *crops.shape[2:])
            return model.apply({"params": params}, flat, method="conv_features")

    def parts() -> Iterator[np.ndarray]:
        for batch in loader.epoch(dataset, rows, encoder.image_size, BATCH):
            if name == "TF32":
                with rounding(MANTISSA[name], convolutions=True):
                    yield np.asarray(extract(batch["image"]))
            else:
                yield np.asarray(extract(batch["image"]))

    found = np.concatenate(list(parts())).reshape(len(rows), len(boxes), -1)
    cache.mkdir(parents=True, exist_ok=True)
    with whole.whole_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, found)
    return found


def outputs(encoder: Encoder, conv: np.ndarray, name: str) -> RegionOutputs:
    """Returns codes and keep probabilities, with the dense layers computed in a type."""
    batches = [conv[i : i + BATCH] for i in range(0, len(conv), BATCH)]
    if name == "float32":
        parts = [encoder.region_outputs(x) for x in batches]
    else:
        bits = MANTISSA[name]
        changed = dataclasses.replace(
            encoder,
            params=rounded_kernels(encoder.params, bits),
            policy_variables=rounded_kernels(encoder.policy_variables, bits),
        )
        with rounding(bits, convolutions=False):
            parts = [changed.region_outputs(x) for x in batches]
    return RegionOutputs(*map(np.concatenate, zip(*parts, strict=True)))


def average_precision(
    encoder: Encoder, dataset: data.Dataset, rows: np.ndarray, found: RegionOutputs, queries: int
) -> dict[str, float]:
    """Returns the mAP of the whole images' codes (`base`) and of the kept ones (`mch`).

    Args:
      encoder: The encoder.
      dataset: The data set of the photos.
      rows: Their rows, those of the queries first.
      found: What the encoder computed for them.
      queries: Number of queries.
    """
    ids, labels, num_bits = dataset.ids[rows], dataset.labels[rows], encoder.model.num_bits
    sizes = np.ones((len(rows), 2), np.int32)  # the boxes that depend on them are not used
    code_set = encoder.code_set(found.packed, found.keep_prob, sizes)

    def file(part: slice, codes: int) -> Any:
        chosen = type(code_set)(*(x[part, :codes] for x in code_set))
        return code_sets.flatten(chosen, ids[part], labels[part], num_bits)

    query, database = slice(queries), slice(queries, None)
    return {
        name: metrics.mean_average_precision(
            evaluate.histogram(file(query, 1), file(database, codes))
        )
        for name, codes in (("base", 1), ("mch", found.packed.shape[1]))
    }


def compare(
    encoder: Encoder, dataset: data.Dataset, rows: np.ndarray, queries: int, cache: Path
) -> list[dict[str, Any]]:
    """Returns a row for each type and choice of layers; the first one is float32."""
    table, num_bits = [], encoder.model.num_bits
    kinds = [("float32", "float32")]
    kinds += [(name, heads) for name in MANTISSA for heads in ("float32", name)]
    reference: Any = None
    for name, heads in kinds:
        found = outputs(encoder, conv_features(encoder, dataset, rows, name, cache), heads)
        reference = found if reference is None else reference
        flips = np.bitwise_count(found.packed ^ reference.packed).sum(-1) / num_bits
        kept = [x.keep_prob[queries:, 1:] >= encoder.keep_threshold for x in (found, reference)]
        table.append(
            {
                "convolutions": name, "heads": heads,
                "changed_bits_whole": float(flips[:, 0].mean()),
                "changed_bits_regions": float(flips[:, 1:].mean()),
                "changed_codes_whole": float((flips[:, 0] > 0).mean()),
                "changed_kept": float((kept[0] != kept[1]).mean()),
                "map": average_precision(encoder, dataset, rows, found, queries),
            }
        )  # fmt: skip
    return table


def main() -> int:
    """Prints the tables and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", required=True, help="workdirs of finished runs, with commas")
    parser.add_argument("--root", required=True, help="folder of its data set")
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--database", type=int, default=1200, help="number of database photos")
    parser.add_argument(
        "--cache", help="folder for features; precision/ in the first run by default"
    )
    parser.add_argument("--out", help="JSON file of the tables")
    arguments = parser.parse_args()
    workdirs = [Path(name) for name in arguments.run.split(",")]
    config = read_json(workdirs[0] / "config.json", "start the run again")
    dataset = data.load(config["dataset"]["name"], arguments.root, **_settings(config))
    rng = np.random.default_rng(0)
    rows = np.concatenate(
        [
            np.sort(rng.permutation(dataset.query)[: arguments.queries]),
            np.sort(rng.permutation(dataset.database)[: arguments.database]),
        ]
    )
    queries = min(arguments.queries, len(dataset.query))
    records, cache = [], Path(arguments.cache or workdirs[0] / "precision")
    for workdir in workdirs:
        encoder = Encoder.from_run(workdir)
        table = compare(encoder, dataset, rows, queries, cache)
        count = {"queries": queries, "database": len(rows) - queries}
        records.append({"run": workdir.name, **count, "rows": table})
        for row in table:
            print(row)  # noqa: T201
    if arguments.out:
        whole.write_json(arguments.out, records)
    return 0


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    given = config["dataset"]["settings"]
    return {name: value for name, value in given.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
