import io
import json
import logging
import struct
import sys
import types

import pytest
from ml_collections import ConfigDict

from mch_jax.training import events, logs


def test_metrics_are_one_json_object_per_line(tmp_path):
    log = logs.MetricsLog(tmp_path / "metrics.jsonl")
    log.write("base", 1, loss=0.5)
    log.write("agent", 1, reward=2, keep_rate=0.25)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 1, "stage": "base", "base/loss": 0.5}
    expected = {"step": 1, "stage": "agent", "agent/reward": 2.0, "agent/keep_rate": 0.25}
    assert logs.read_metrics(tmp_path / "metrics.jsonl")[1] == expected


def test_no_metrics_yet(tmp_path):
    assert logs.read_metrics(tmp_path / "metrics.jsonl") == []
    logs.MetricsLog(tmp_path / "metrics.jsonl").rewind("base", 3)
    assert list(tmp_path.iterdir()) == []


def test_rewind_drops_what_the_stage_will_write_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = logs.MetricsLog(path)
    for step in range(1, 4):
        log.write("base", step, loss=step)
    log.write("agent", 9, reward=1)
    with open(path, "a") as file:
        file.write('{"step": 4, "sta')  # killed in the middle of a line
    log.rewind("base", 2)
    assert [(row["stage"], row["step"]) for row in logs.read_metrics(path)] == [
        ("base", 1),
        ("base", 2),
        ("agent", 9),
    ]
    log.write("base", 3, loss=0)
    assert logs.read_metrics(path)[-1]["base/loss"] == 0
    assert [x.name for x in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0, [f"title: {n} of 20" for n in range(2, 21, 2)]),
        (15, [f"title: {n} of 20" for n in (16, 18, 20)]),
    ],
)
def test_progress_without_a_terminal_is_a_line_per_tenth(caplog, start, expected):
    with caplog.at_level(logging.INFO, "absl"):
        assert list(logs.progress(range(start, 20), 20, "title", start)) == list(range(start, 20))
    assert [record.getMessage() for record in caplog.records] == expected


def test_progress_in_photos_and_minutes(caplog, monkeypatch):
    clock = iter(range(0, 10_000, 300))
    monkeypatch.setattr(logs.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "absl"):
        assert list(logs.progress([1, 2], 2500, "codes", 500, unit="photos", size=1000)) == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "codes: 1,500 of 2,500 photos, 5 min left",
        "codes: 2,500 of 2,500 photos",
    ]
    assert [logs.duration(x) for x in (12.0, 89.9, 100.0, 7200.0)] == [
        "12 s",
        "90 s",
        "2 min",
        "2.0 h",
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", stream)
    assert list(logs.progress(range(3), 4, "title", 1)) == [0, 1, 2]
    assert "title: 100%" in stream.getvalue()
    assert "4/4" in stream.getvalue()


def test_check_finite():
    logs.check_finite("agent", 3, {"loss": 1.0, "reward": -2})
    with pytest.raises(ValueError, match=r"base/loss is nan at step 7; .*lower base.learning_rate"):
        logs.check_finite("base", 7, {"loss": float("nan")})


def test_the_guard_names_the_first_bad_step():
    guard = logs.FiniteGuard("agent")
    guard.check()
    guard.watch(1, {"loss": 1.0})
    guard.watch(2, {"loss": float("inf")})
    with pytest.raises(ValueError, match="agent/loss is inf at step 2"):
        guard.watch(3, {"loss": float("nan")})
    guard = logs.FiniteGuard("agent")
    guard.watch(7, {"loss": float("nan")})
    with pytest.raises(ValueError, match="agent/loss is nan at step 7"):
        guard.check()


def read_events(folder):
    """Yields the events of all files of a directory, in the order of their names."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_event_files_equal_the_metrics(tmp_path):
    for start in (0, 1):  # the second log resumes after the first step
        log = logs.MetricsLog(tmp_path / "metrics.jsonl", events.Events(tmp_path / "events"))
        log.rewind("base", start)
        for step in range(start + 1, 4):
            log.write("base", step, loss=step + start / 2)
    found = {}
    for event in read_events(tmp_path / "events" / "base"):
        if event.HasField("session_log"):  # as TensorBoard treats it
            found = {step: values for step, values in found.items() if step < event.step}
        for value in event.summary.value:
            found[event.step] = {value.tag: value.simple_value}
    rows = logs.read_metrics(tmp_path / "metrics.jsonl")
    assert found == {row["step"]: {"base/loss": row["base/loss"]} for row in rows}
    assert found == {1: {"base/loss": 1.0}, 2: {"base/loss": 2.5}, 3: {"base/loss": 3.5}}


def test_event_files_need_a_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX.proto.event_pb2", None)
    with pytest.raises(ValueError, match="tensorboardX is not installed; run pip install"):
        events.Events(tmp_path)


def test_scalars_go_to_weights_and_biases(tmp_path, monkeypatch):
    called = []

    class Started:
        id = "abc"
        define_metric = staticmethod(lambda name, step_metric: called.append((name, step_metric)))
        log = staticmethod(called.append)

    def init(**given):
        called.append((given["project"], given["id"], given["resume"], given["config"]))
        return Started()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = ConfigDict({"wandb": "mine", "tensorboard": False})
    for _ in range(2):
        log = logs.MetricsLog(
            tmp_path / "metrics.jsonl", *events.sinks(config, {"seed": 0}, tmp_path)
        )
        log.rewind("base", 0)
        log.write("base", 1, loss=2)
    wrote = [("base/*", "base/step"), {"base/loss": 2.0, "base/step": 1}]
    begun = [("mine", known, "allow", {"seed": 0}) for known in (None, "abc")]
    assert called == [begun[0], *wrote, begun[1], *wrote]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="wandb is not installed; run pip install"):
        events.sinks(config, {}, tmp_path)
    assert events.sinks(ConfigDict(), {}, tmp_path) == []  # of an old run
