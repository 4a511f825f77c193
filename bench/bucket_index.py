"""Rows of the table from `bench/index.py` and `bench/long_codes.py`, which measure the index."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import measure

HERE = Path(__file__).parent


def index(quick: bool) -> list[measure.Row]:
    """Measures building and searching the bucket index at COCO's size, against FAISS's flat index.

    The tables of more sizes in results/ are not changed.
    """
    sizes = "20000" if quick else "117218,1000000"
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [sys.executable, str(HERE / "index.py"), f"--sizes={sizes}", f"--out={out}"],
            check=True, capture_output=True,
            env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        )  # fmt: skip
        records = json.loads((Path(out) / "index.json").read_text())["records"]
    rows = []
    for record in records:
        by_name = {row["engine"]: row for row in record["engines"]}
        flat = by_name["FAISS IndexBinaryFlat"]
        ours = next(row for name, row in by_name.items() if "mch_jax" in name)
        rate = 1e6 / ours["us"]
        kind = "skewed, " if record["title"] == "skewed" else ""
        rows.append(
            measure.Row(
                f"index search, {kind}{record['images']:,} images", 1,
                "queries/s", rate, rate, rate,
                peer="FAISS IndexBinaryFlat", peer_rate=1e6 / flat["us"],
                ratio=flat["us"] / ours["us"],
                note=f"k = {record['k']}, exact answers {ours['exact']:.0%}; built in "
                f"{ours['build']:.2f} s, {ours['bytes']:.1f} bytes per code; index.md has the rest",
            )
        )  # fmt: skip
    return rows


def long_codes(quick: bool) -> list[measure.Row]:
    """Measures searching codes of 256 bits, clustered and uniform, against FAISS's flat index.

    The tables of more lengths in results/ are not changed.
    """
    size = 20_000 if quick else 1_000_000
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [sys.executable, str(HERE / "long_codes.py"), "--bits=256", "--graphs=0",
             f"--sizes={size}", f"--out={out}"],
            check=True, capture_output=True,
            env=os.environ | {"PYTHONPATH": str(HERE.parent)},
        )  # fmt: skip
        records = json.loads((Path(out) / "long_codes.json").read_text())["records"]
    rows = []
    for record in records:
        us = {row["engine"]: row["us"] for row in record["engines"]}
        ours, flat = us["mch_jax BucketIndex"], us["FAISS IndexBinaryFlat"]
        scan, rate = us["the same, plain scan"], 1e6 / ours
        rows.append(
            measure.Row(
                f"index search, {record['bits']} bits, {record['kind']}, {record['images']:,} "
                "images", 1, "queries/s", rate, rate, rate,
                peer="FAISS IndexBinaryFlat", peer_rate=1e6 / flat, ratio=flat / ours,
                note=f"k = {record['k']}; {ours / scan:.2f} of a plain scan; long_codes.md has "
                "the rest",
            )
        )  # fmt: skip
    return rows
