"""What the files of runs, exports and sharded indexes hold, as their readers expect it.

Arrays are described by `npz.Field`, and values of JSON files as `json_values.check` expects them.
Further keys of JSON files are allowed: later versions add measures, and earlier ones lack them.
"""

import math

from mch_jax.files.json_values import Number, Optional
from mch_jax.files.npz import Field

_REGIONS = {
    "codes": Field("u1", ("items", "regions", "bytes")),
    "keep_prob": Field("f4", ("items", "regions"), 0, 1),
}
REGIONS = _REGIONS | {
    "reward": Field("f4", ("items", "regions")),
    "training_reward": Field("f4", ("items", "regions"), is_optional=True),
    "box": Field("i4", ("items", "regions", 4), 0),
}
SWEPT_REGIONS = _REGIONS | {"box": REGIONS["box"]}
QUERY_REGIONS = _REGIONS | {
    "kept": Field("b1", ("items", "regions")),
    "logits": Field("f4", ("items", "regions", "bits")),
    "label_logits": Field("f4", ("items", "regions", "classes")),
}
FINGERPRINTS = {
    "maker": Field("U", ()),
    "identity": Field("U", ("photos",)),
    "codes": Field("u1", ("photos", "views", "bytes")),
    "small": Field("u1", ("photos", 32, 32)),
    "sizes": Field("i4", ("photos", 2), 1),
}

_COUNT = Number(0, 2**53, is_whole=True)
_BITS = Number(1, 2**20, is_whole=True)
_SOME = Number(1, 2**53, is_whole=True)
_MEASURES = {
    **dict.fromkeys(
        (
            "map", "map_at_5000", "p_at_h0", "r_at_h0", "nonempty_at_h0", "p_at_h2", "r_at_h2",
            "anhc",
        ),
        float,
    ),
    "f1_bucket": {"k": [_COUNT], "f1": [float], "probed": [float], "nonempty": [float]},
}  # fmt: skip
RESULTS = {
    "dataset": {
        "name": str, "queries": _COUNT, "database": _COUNT, "train": _COUNT, "classes": _COUNT,
        "queries_without_relevant": _COUNT,
    },
    "method": str,
    "num_bits": _BITS,
    "seed": _COUNT,
    "chance_map": float,
    "base": _MEASURES,
    "mch": _MEASURES,
    "controls": Optional(dict.fromkeys(("never", "always", "random", "oracle"), _MEASURES)),
    "mch_minus_base": Optional(
        dict.fromkeys(("map", "p_at_h0", "r_at_h0"), {"mean": float, "interval": float})
    ),
}  # fmt: skip
SUMMARY = {"base": {"map": float}, "mch": {"map": float, "anhc": float}}
METRICS = {"step": _COUNT, "stage": str}
SWEEP = {
    "rows": [
        {
            "crop_ratio": Number(0, 1), "keep_threshold": Number(0, 1), "map": float,
            "p_at_h0": float, "r_at_h0": float, "anhc": float,
        }
    ]
}  # fmt: skip
FEATURES = {
    "format": Field("U", ()),
    "crop_ratio": Field("f", (), 0, 1),
    "ids": Field("U", ("photos",)),
    "regions": Field("f", ("photos", 6, "width")),
    "view_ids": Field("U", ("train",), is_optional=True),
    "views": Field("f", ("train", "views", "width"), is_optional=True),
}
NEIGHBOURS = {
    "groups": Field("u1", ("photos", "groups"), 0, 1),
    "made_from": Field("U", ()),
    "measures": Field("b1", ()),
}
PROGRESS = {"done": _COUNT}
PLAN = {"format": str, "count": _SOME, "shard_size": _SOME, "batch_size": _SOME}
DAMAGED = {"id": str, "reason": str}
GRID = {"dataset": str, "set": [str]}
SHARDS = {"format": str, "num_bits": _BITS, "shards": Number(1, 2**16, is_whole=True)}

# Settings of encoder.npz. A side of `MAX_SIDE` pixels is more than any network here can use, and
# still fits the memory.
MAX_SIDE = 4096
SIDE = Number(1, MAX_SIDE, is_whole=True)
MAX_WIDTH = 2**20
WIDTH = Number(1, MAX_WIDTH, is_whole=True)
THRESHOLD = Number(0, 2)  # above 1 no region is kept
CALIBRATION = {"keep_threshold": THRESHOLD}
BACKBONE = {
    "kind": str, "source": str, "sha256": str, "width": WIDTH,
    "mean": [Number(-1e6, 1e6)], "std": [Number(1e-6, 1e6)],
}  # fmt: skip
TRUNK = {"name": str, "mean": BACKBONE["mean"], "std": BACKBONE["std"]}
ENCODER = {
    "num_bits": _BITS,
    "hidden": Number(0, MAX_WIDTH, is_whole=True),
    "width": Number(math.ulp(0), 2**10),
    "num_anchors": Optional(Number(0, MAX_WIDTH, is_whole=True)),
    "num_classes": Optional(Number(0, MAX_WIDTH, is_whole=True)),
    "conv_dtype": Optional(str),
    "crop_ratio": Number(math.ulp(0), 1),
    "keep_threshold": THRESHOLD,
    "image_size": SIDE,
    "input_size": SIDE,
}
