import json

import jax
import numpy as np
import pytest

from mch_jax.files import load_arrays, save_arrays, whole_file, write_json


def test_whole_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with whole_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"

    def fail():
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [x.name for x in path.parent.iterdir()] == ["a.txt"]
    assert path.read_text() == "one"


def test_write_json(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, 2.5, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1, 2.5, None]}


def test_arrays_round_trip(tmp_path):
    tree = {"params": {"conv.1": {"kernel": np.eye(2, dtype=np.float32)}, "step": np.int32(3)}}
    save_arrays(tmp_path / "model", tree, {"num_bits": 8, "widths": [1, 2]})
    loaded, settings_read = load_arrays(tmp_path / "model")
    assert settings_read == {"num_bits": 8, "widths": [1, 2]}
    jax.tree.map(np.testing.assert_array_equal, loaded, tree)
    assert [x.name for x in tmp_path.iterdir()] == ["model"]


def test_damaged_arrays_are_refused(tmp_path):
    path = tmp_path / "model.npz"
    with pytest.raises(ValueError, match=r"model\.npz does not exist"):
        load_arrays(path)
    save_arrays(path, {"a": np.zeros(100)}, {})
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    clash = {"settings": np.str_("{}"), "a": np.zeros(1), "a/b": np.zeros(1)}
    np.savez(tmp_path / "clash.npz", **clash)
    for data in (
        whole[:100],
        b"",
        (tmp_path / "other.npz").read_bytes(),
        (tmp_path / "clash.npz").read_bytes(),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read") as error:
            load_arrays(path)
        assert "\n" not in str(error.value)
