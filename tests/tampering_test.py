"""Damaged and tampered files of runs, exports and indexes: one line that names the file, or remade.

Each case changes one file of a copy of a finished run and calls a reader of it. No case may end in
another error, use much memory, or be read in silence.
"""

import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from tiny_run import read, tiny

from mch_jax import bulk, evaluation, grid, pipeline
from mch_jax.cluster.shards import Shards
from mch_jax.data import sources
from mch_jax.encoder import Encoder
from mch_jax.evaluation import sweep
from mch_jax.files import load_arrays, save_arrays
from mch_jax.index import BucketIndex
from mch_jax.report import run_files
from mch_jax.retriever import Retriever
from mch_jax.training import run

Workdir = pathlib.Path
NAN = float("nan")


class Case(NamedTuple):
    """One change of a file.

    Attributes:
      file: The file, relative to the workdir.
      text: What is changed.
      change: Changes the file at a path.
      act: Reads it.
      reason: What the error has to say besides the file's name.
    """

    file: str
    text: str
    change: Callable[[pathlib.Path], Any]
    act: Callable[[Workdir], Any]
    reason: str


def put(path: str, value: Any) -> Callable[[pathlib.Path], Any]:
    """Returns a change of one place of a JSON file; `...` removes it."""

    def change(file: pathlib.Path) -> None:
        tree = node = json.loads(file.read_text())
        *parents, last = path.split(".")
        for name in parents:
            node = node[name]
        node[last] = value
        if value is ...:
            del node[last]
        file.write_text(json.dumps(tree))

    return change


def text(content: str) -> Callable[[pathlib.Path], Any]:
    return lambda file: file.write_text(content)


def cut(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def arrays(**changes: Any) -> Callable[[pathlib.Path], Any]:
    """Returns a change of arrays of an .npz: an array, or a function of the array."""

    def change(file: pathlib.Path) -> None:
        with np.load(file, allow_pickle=False) as archive:
            found: dict[str, Any] = dict(archive)
        for name, value in changes.items():
            found[name] = value(found[name]) if callable(value) else value
        np.savez(file, **{name: value for name, value in found.items() if value is not None})

    return change


def encoder(change: Callable[[dict, dict], Any]) -> Callable[[pathlib.Path], Any]:
    def changed(file: pathlib.Path) -> None:
        tree, settings = load_arrays(file)
        change(tree, settings)
        save_arrays(file, tree, settings)

    return changed


def kernel(function: Callable[[np.ndarray], Any]) -> Callable[[pathlib.Path], Any]:
    """Returns a change of the hash layer of an encoder."""

    def change(tree: dict, _: dict) -> None:
        tree["base"]["hash"]["kernel"] = function(tree["base"]["hash"]["kernel"])

    return encoder(change)


def setting(**values: Any) -> Callable[[pathlib.Path], Any]:
    return encoder(lambda _, settings: settings.update(values))


def first(value: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that changes the first number of an array."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[0] = value
        return array

    return change


def variance(tree: dict, _: dict) -> None:
    stats = next(iter(tree["policy"]["batch_stats"].values()))
    stats["var"] = first(-1)(stats["var"])


def verify(workdir: Workdir) -> Any:
    return evaluation.verify(workdir)


def write_report(workdir: Workdir) -> Any:
    return run_files.read(workdir)


def index_file(name: str) -> Callable[[Workdir], pathlib.Path]:
    return lambda workdir: next((workdir / "index").glob(f"{name}*"))


NESTED = '{"a":' * 100_000

CONFIG = [
    Case("config.json", change[0], put(*change), run.read_config, reason)
    for change, reason in [
        (("dataset.image_size", 10**6), "from 1 to 4096"),
        (("num_bits", "twelve"), "num_bits is twelve"),
        (("encode.crop_ratio", NAN), "NaN is not a number of JSON"),
        (("encode.keep_threshold", 7), "keep_threshold is 7"),
        (("dataset.settings", [1]), "dataset.settings is"),
        (("dataset", "scenes"), "no field dataset"),
        (("seed", ...), "no field seed"),
        (("evaluate.bucket_k", "many"), "bucket_k is many"),
        (("model.hidden", 10**12), "model.hidden is 1000000000000"),
        (("agent.widths", [10**9] * 4), "agent.widths is"),
    ]
] + [
    Case("config.json", "a list", text("[]"), run.read_config, "no JSON object"),
    Case("config.json", "nested deeply", text(NESTED), run.read_config, "damaged"),
]

RESULTS = [
    Case("results.json", change[0], put(*change), verify, reason)
    for change, reason in [
        (("mch.map", NAN), "NaN is not a number of JSON"),
        (("base", ...), "base is missing"),
        (("base.f1_bucket", 3), "base.f1_bucket is 3, expected an object"),
        (("base.f1_bucket.k", [1, "x"]), r"base.f1_bucket.k\[1\] is 'x'"),
        (("num_bits", "12"), "num_bits is '12'"),
        (("dataset.queries", -1), "dataset.queries is -1"),
        (("controls.oracle", {}), "controls.oracle.map is missing"),
    ]
]

ENCODER = [
    Case("encoder.npz", text, change, Encoder.from_run, reason)
    for text, change, reason in [
        ("NaN", kernel(first(NAN)), "not finite"),
        ("complex weights", kernel(lambda x: x + 1j), "expected real numbers"),
        ("float64", kernel(lambda x: x.astype(float)), "hash.kernel is float64"),
        ("whole numbers", kernel(lambda x: x.astype(np.int32)), "hash.kernel is int32"),
        ("text", kernel(lambda x: x.astype(str)), "hash.kernel is <U"),
        ("another shape", kernel(lambda x: x[:-1]), "expected float32 "),
        ("one value for all", kernel(lambda x: x[:1, :1]), "expected float32 "),
        ("no layer", encoder(lambda tree, _: tree["base"].pop("hash")), "no array base.hash"),
        ("a further layer", encoder(lambda tree, _: tree.update(base=tree["base"] | {"x": {
            "y": np.zeros(3, np.float32)}})), "unknown array base.x.y"),
        ("no base model", encoder(lambda tree, _: tree.pop("base")), "no array base"),
        ("a negative variance", encoder(variance), "expected at least 0"),
        ("a NaN ratio", setting(crop_ratio=NAN), "NaN is not a number of JSON"),
        ("a ratio of 7", setting(crop_ratio=7), "crop_ratio is 7"),
        ("a threshold as text", setting(keep_threshold="0.5"), "keep_threshold is '0.5'"),
        ("image_size of 10^6", setting(image_size=10**6), "image_size is 1000000"),
        ("input_size of -1", setting(input_size=-1), "input_size is -1"),
        ("hidden of 10^12", setting(hidden=10**12), "hidden is 1000000000000"),
        ("widths as text", setting(widths="wide"), "widths is 'wide'"),
        ("another width", setting(width=0.5), "expected float32"),
        ("num_bits of 10^12", setting(num_bits=10**12), "num_bits is 1000000000000"),
        ("settings that are no JSON", arrays(settings=np.str_("{")), "cannot be read"),
        ("cut short", cut, "cannot be read"),
    ]
]  # fmt: skip

CODES = [
    Case("codes/database.npz", text, change, Retriever, reason)
    for text, change, reason in [
        ("codes as floats", arrays(codes=lambda x: x.astype(np.float32)), "codes is float32"),
        ("keep_prob NaN", arrays(keep_prob=first(NAN)), "not finite"),
        ("keep_prob of 7", arrays(keep_prob=first(7)), "ranges from"),
        ("a box outside", arrays(box=first(-5)), "ranges from"),
        ("a box that ends first", arrays(box=lambda x: x[:, ::-1]), "ends before it begins"),
        ("items in disorder", arrays(item=lambda x: x[::-1]), "does not ascend"),
        ("an item of 2^60", arrays(item=lambda x: first(2**60)(x[::-1])[::-1]), "does not ascend"),
        ("a label of 2", arrays(labels=first(2)), "ranges from"),
        ("num_bits of -1", arrays(num_bits=np.int64(-1)), "num_bits is -1"),
        ("names as bytes", arrays(ids=lambda x: x.astype("S")), "ids is |S"),
        ("an additional array", arrays(more=np.zeros(9)), "unknown array 'more'"),
    ]
]

REGIONS = [
    Case(f"codes/{name}.npz", text, change, verify, reason)
    for name, text, change, reason in [
        ("regions", "NaN rewards", arrays(reward=first(NAN)), "not finite"),
        ("regions", "codes as floats", arrays(codes=lambda x: x * 1.0), "codes is float64"),
        ("regions", "fewer photos", arrays(codes=lambda x: x[1:]), "has the shape"),
        ("regions", "other codes", arrays(codes=lambda x: x ^ 1), "does not hold the regions"),
        ("regions", "cut short", cut, "damaged"),
        ("query_regions", "complex logits", arrays(logits=lambda x: x + 0j), "is complex"),
        ("query_regions", "fewer regions", arrays(kept=lambda x: x[:, 1:]), "has the shape"),
        ("query_regions", "no logits", arrays(logits=None), "no array 'logits'"),
        ("query_regions", "other logits", arrays(logits=lambda x: -x), "does not hold the regions"),
        ("query", "other bits", arrays(num_bits=np.int64(11)), "has codes of 11 bits"),
        ("train", "cut short", cut, "not a sound codes file"),
    ]
]

METRICS = [
    Case("metrics.jsonl", name, text(content), write_report, f"line 1: .*{reason}")
    for name, content, reason in [
        ("no JSON", "loss\n", "Expecting value"),
        ("NaN", '{"step": 1, "stage": "base", "base/loss": NaN}\n', "NaN"),
        ("a list", "[1]\n", "expected an object"),
        ("no stage", '{"step": 1}\n', "stage is missing"),
    ]
]


def plan(workdir: Workdir) -> Any:
    photo = sources.Photo("a.png", str(workdir))
    return bulk.make_plan(workdir, [photo], workdir / "export", 1, 1)


def damaged_list(workdir: Workdir) -> Any:
    return bulk.read_damaged(plan(workdir))


def claim(workdir: Workdir) -> Any:
    grid.claim(workdir, {"dataset": "scenes", "set": []})


def open_index(workdir: Workdir) -> Any:
    return BucketIndex.open(workdir / "index")


def open_shards(workdir: Workdir) -> Any:
    return Shards(workdir / "shards")


SHARDS = '{"format": "mch-shards/1", "num_bits": 12, "shards": '
OTHERS = [
    Case("export/plan.json", "a list", text("[]"), plan, "no JSON object"),
    Case("export/plan.json", "no count", put("count", ...), plan, "count is missing"),
    Case("export/000000.damaged.jsonl", "no JSON", text("x\n"), damaged_list, "line 1"),
    Case("export/000000.damaged.jsonl", "numbers", text('{"id": 3}\n'), damaged_list, "id is 3"),
    Case("grid.json", "numbers", text('{"dataset": 3, "set": []}'), claim, "dataset is 3"),
    Case("sweep.json", "no rows", text("{}"), sweep.read_rows, "rows is missing"),
    Case("sweep.json", "text", text('{"rows": ["x"]}'), sweep.read_rows, r"rows\[0\] is 'x'"),
    Case("shards/shards.json", "-1", text(SHARDS + "-1}"), open_shards, "shards is -1"),
    Case("shards/shards.json", "10^12", text(SHARDS + "1000000000000}"), open_shards, "shards is"),
    Case("index/meta.json", "cut short", cut, open_index, "damaged"),
    Case("index/meta.json", "num_bits", put("num_bits", 10**9), open_index, "checksum"),
    Case("index/base-keys-*.npy", "cut short", cut, open_index, "bytes, expected"),
    Case("index/base-items-*.npy", "other numbers",
         lambda f: f.write_bytes(f.read_bytes()[:-8] + b"\xff" * 8), open_index, "checksum"),
]  # fmt: skip

CASES = [*CONFIG, *RESULTS, *ENCODER, *CODES, *REGIONS, *METRICS, *OTHERS]


def test_there_are_at_least_51_cases():
    assert len({(case.file, case.text) for case in CASES}) == len(CASES) >= 51


@pytest.fixture(scope="module")
def complete(finished, tmp_path_factory):
    """A finished run with an index, shards, an export, a sweep and a grid beside its own files."""
    workdir = tmp_path_factory.mktemp("complete") / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("report", ".lock"))
    index = BucketIndex.from_file(workdir / "codes" / "database.npz")
    index.save(workdir / "index")
    Shards.build(np.zeros((2, 2), np.uint8), np.arange(2), 12, workdir / "shards", 1)
    claim(workdir)
    plan(workdir)
    for name in ("sweep.json", "export/000000.damaged.jsonl"):
        (workdir / name).write_text("")
    return workdir


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}: {case.text}")
def test_a_changed_file_is_named(case, complete, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(complete, workdir)
    (path,) = workdir.glob(case.file)
    case.change(path)
    began = time.monotonic()
    with pytest.raises(ValueError, match=case.reason) as error:
        case.act(workdir)
    assert time.monotonic() - began < 10
    said = str(error.value)
    assert str(path) in said
    assert "\n" not in said
    assert len(said) < 600
    assert ";" in said, "it says what to do"


def test_an_unchanged_run_is_read(complete, tmp_path):
    """An unchanged run passes; the cases above therefore fail for their changes."""
    shutil.copytree(complete, tmp_path / "run")
    (tmp_path / "run" / "sweep.json").unlink()
    assert not verify(tmp_path / "run")
    found = write_report(tmp_path / "run")
    assert found.metrics[0]["stage"] == "base"
    Retriever(tmp_path / "run")


def zeros(file: pathlib.Path) -> None:
    np.save(file, np.zeros((3, 2), np.float32))


@pytest.mark.parametrize(
    "changes",
    [
        {
            "encoder.npz": os.unlink,
            "audit.npz": arrays(sizes=lambda x: x.astype(complex)),
            "codes/made_from.json": text("{"),
        },
        {
            "encoder.npz": cut,
            "audit.npz": os.unlink,
            "codes/query.npz": os.unlink,
            "features/scenes-regions-*.npy": zeros,
            "features/scenes-train_views-*.npy": cut,
        },
    ],
    ids=["encoder", "features"],
)
def test_what_can_be_made_again_is_made_again(finished, tmp_path, monkeypatch, changes):
    monkeypatch.setattr("mch_jax.report.write", lambda *_: None)  # it takes most of the time
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("report"))
    expected = read(workdir)
    for name, change in changes.items():
        (path,) = workdir.glob(name)
        change(path)
    pipeline.run_stages(tiny(), workdir)
    Encoder.from_run(workdir)
    for name in changes:
        assert list(workdir.glob(name)), name
    results, codes = read(workdir)
    assert results == expected[0]
    for key, array in codes.items():
        np.testing.assert_array_equal(array, expected[1][key], key)
