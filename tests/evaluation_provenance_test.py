import json
import re
import shutil

import numpy as np
import pytest

from mch_jax import pipeline
from mch_jax.evaluation import provenance
from mch_jax.files import codes_file, write_json
from mch_jax.files.codes_file import CodeFile


def code_file(ids="ab", labels=((0, 1), (1, 1))):
    ids = np.array([f"{name}.jpg" for name in ids])
    count = len(ids)
    return CodeFile(
        codes=np.zeros((count, 1), np.uint8), item=np.arange(count), ids=ids,
        keep_prob=np.ones(count, np.float32), box=np.zeros((count, 4), np.int32),
        labels=np.array(labels, np.uint8), num_bits=8,
    )  # fmt: skip


def test_config_hash_depends_on_values_but_not_on_paths():
    config = {"seed": 0, "cache_dir": "", "dataset": {"name": "folder", "root": "a"}}
    elsewhere = {"cache_dir": "/x", "dataset": {"root": "b", "name": "folder"}, "seed": 0}
    assert provenance.config_hash(config) == provenance.config_hash(elsewhere)
    assert provenance.config_hash(config) != provenance.config_hash({**config, "seed": 1})
    assert config["dataset"]["root"] == "a"


def test_split_hash_depends_on_names_labels_and_order():
    first, other = code_file(), code_file("cd")
    hashes = {
        provenance.split_hash(files)
        for files in (
            (first, other), (other, first), (first,), (code_file("ba"), other),
            (code_file(labels=((1, 0), (1, 1))), other),
        )
    }  # fmt: skip
    assert len(hashes) == 5
    wider = first._replace(ids=first.ids.astype("U99"))
    assert provenance.split_hash((wider, other)) == provenance.split_hash((first, other))


def test_provenance_is_json_with_versions_device_commit_and_hashes():
    found = provenance.provenance({"seed": 0}, (code_file(),))
    assert json.loads(json.dumps(found)) == found
    assert set(found["versions"]) == {"python", *provenance.PACKAGES}
    assert found["device"]["platform"] == "cpu"
    assert found["commit"] is None or re.fullmatch("[0-9a-f]{40}[+]?", found["commit"])
    assert len(found["config_hash"]) == len(found["split_hash"]) == 64


def test_commit_is_none_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert provenance.commit.__wrapped__() is None


def test_differences_name_the_value():
    stated = {"a": {"b": [1, 2.0]}, "c": "x", "more": 1}
    assert list(provenance.differences(stated, {"a": {"b": [1, 2.0 + 1e-12]}, "c": "x"})) == []
    recomputed = {"a": {"b": [1, 2.1]}, "c": "y", "d": {"e": 3}}
    assert list(provenance.differences(stated, recomputed)) == [
        "a.b[1]: 2.0 is stated, the codes give 2.1",
        "c: x is stated, the codes give y",
        "d.e: None is stated, the codes give 3",
    ]
    assert len(list(provenance.differences({"a": [1]}, {"a": [1, 2]}))) == 1


def test_a_run_verifies_and_changed_files_do_not(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "run")
    assert pipeline.verify(workdir) == 0
    assert re.search(r"agrees in \d\d+ values", capsys.readouterr().out)

    results = json.loads((workdir / "results.json").read_text())
    right = results["mch"]["map"]
    results["mch"]["map"] = right + 0.01
    write_json(workdir / "results.json", results)
    assert pipeline.verify(workdir) == 1
    assert "mch.map: " in capsys.readouterr().out

    results["mch"]["map"] = right
    write_json(workdir / "results.json", results)
    query = codes_file.load(workdir / "codes" / "query.npz")
    codes_file.save(workdir / "codes" / "query.npz", query._replace(labels=1 - query.labels))
    assert pipeline.verify(workdir) == 1
    assert "provenance.split_hash" in capsys.readouterr().out


def test_damaged_results_are_named(tmp_path):
    (tmp_path / "results.json").write_text('{"base": ')
    with pytest.raises(ValueError, match=r"results.json is damaged .*run the evaluate stage"):
        pipeline.verify(tmp_path)
