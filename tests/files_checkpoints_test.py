import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mch_jax.files import Checkpoints


def state(num_bits: int = 4, value: float = 0) -> dict:
    kernel = jnp.full((3, num_bits), value)
    return {"params": {"hash": {"kernel": kernel}}, "step": jnp.int32(value)}


def test_newest_checkpoint_is_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path / "base", keep=2)
    assert checkpoints.restore(state()) is None
    for step in (10, 20, 30):
        checkpoints.save(step, state(value=step))
    checkpoints.save(30, state(value=99))  # exists already
    checkpoints.close()
    again = Checkpoints(tmp_path / "base")
    restored = again.restore(state())
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored, (state(value=30), 30))
    again.close()
    assert sorted(x.name for x in (tmp_path / "base").iterdir()) == ["20", "30"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (state(num_bits=8), r"params.hash.kernel of shape \(3, 4\), expected \(3, 8\)"),
        ({"step": jnp.int32(0)}, r"params.hash.kernel of shape \(3, 4\), expected None"),
        ({**state(), "more": jnp.zeros(1)}, r"more of shape None, expected \(1,\)"),
    ],
)
def test_a_checkpoint_with_other_shapes_is_refused(tmp_path, other, message):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, state())
    with pytest.raises(ValueError, match=message) as error:
        checkpoints.restore(other)
    assert "\n" not in str(error.value)
    checkpoints.close()


def test_damaged_checkpoint_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, state())
    checkpoints.close()
    (tmp_path / "5" / "default" / "_METADATA").write_text("{")
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="/5 cannot be read") as error:
        checkpoints.restore(state())
    assert "\n" not in str(error.value)
    checkpoints.close()


def largest_file(directory):
    return max((x for x in directory.rglob("*") if x.is_file()), key=lambda x: x.stat().st_size)


@pytest.mark.parametrize("how", ["bit", "cut", "metadata", "missing"])
def test_a_damaged_checkpoint_is_skipped(tmp_path, caplog, how):
    """A changed bit of a number gives another number, which can be read without an error."""
    states = [
        {"x": np.random.default_rng(i).normal(size=(64, 64)).astype(np.float32)} for i in range(3)
    ]
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, states[0])
    checkpoints.save(10, states[1])
    checkpoints.close()
    if how == "metadata":
        (tmp_path / "10" / "default" / "_METADATA").write_text("{")
    else:
        path = largest_file(tmp_path / "10")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data[: len(data) // 3] if how == "cut" else data)
        if how == "missing":
            path.unlink()

    checkpoints = Checkpoints(tmp_path)
    restored, step = checkpoints.restore(states[2]) or pytest.fail("nothing restored")
    assert step == 5
    np.testing.assert_array_equal(restored["x"], states[0]["x"])
    (warning,) = [x.getMessage() for x in caplog.records if x.name == "absl" and x.levelno == 30]
    assert f"checkpoint {tmp_path}/10 " in warning
    assert warning.endswith("; using the checkpoint of step 5")
    checkpoints.save(10, states[2])  # replaces the damaged one
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    restored, step = checkpoints.restore(states[0]) or pytest.fail("nothing restored")
    assert step == 10
    np.testing.assert_array_equal(restored["x"], states[2]["x"])
    checkpoints.close()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_not_saved(tmp_path, value):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, state())
    broken = {**state(), "more": np.array([1, value])}
    with pytest.raises(ValueError, match=r"/6: more is not finite and is not saved"):
        checkpoints.save(6, broken)
    assert checkpoints.restore(state())[1] == 5
    checkpoints.close()


def test_restored_states_have_the_same_types(tmp_path):
    params = {"kernel": jnp.ones((3, 4))}
    tx = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9))
    before = (params, tx.init(params))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, before)
    after, _ = checkpoints.restore(jax.tree.map(jnp.zeros_like, before)) or pytest.fail(
        "nothing restored"
    )
    assert jax.tree.structure(after) == jax.tree.structure(before)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    checkpoints.close()


FILL = """
import sys
import numpy as np
from mch_jax import command
from mch_jax.files import Checkpoints

def main(arguments):
    checkpoints = Checkpoints(arguments[0])
    checkpoints.save(1, {"x": np.zeros(10)})
    checkpoints.save(2, {"x": np.random.default_rng(0).random(10**6)})

command.run(main, sys.argv[1:])
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, which only the superuser of a Linux machine can make."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_gets_one_line_and_leaves_nothing(small_disk):
    directory = small_disk / "base"
    result = subprocess.run(
        [sys.executable, "-c", FILL, directory], capture_output=True, text=True, timeout=120
    )
    expected = f"error: {directory}: No space left on device; free some space and start again"
    assert result.stderr.startswith(expected)
    assert result.stderr.count("\n") == 1
    assert result.returncode == 2
    assert [path.name for path in directory.iterdir()] == ["1"]


def test_numbers_that_are_not_finite_are_damage_without_a_hash_too(tmp_path, monkeypatch):
    """Checkpoints of other programs, and those that were tampered with, may lack the hash."""
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mch_jax.files.checkpoints._digest", lambda state: None)
        wrong = {"params": {"hash": {"kernel": jnp.full((3, 4), jnp.nan)}}}
        checkpoints.save(1, state() | wrong)
    with pytest.raises(ValueError, match="params.hash.kernel holds numbers of another type"):
        checkpoints.restore(state())  # whole numbers
    with pytest.raises(ValueError, match=r"/1 cannot be read \(params.hash.kernel is not finite"):
        checkpoints.restore(state(value=0.0))
    checkpoints.close()
