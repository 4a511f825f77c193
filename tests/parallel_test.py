import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax.training import parallel


def test_split_batch_and_padding():
    batch = {"a": np.arange(6), "b": np.arange(12).reshape(6, 2)}
    shared = parallel.split_batch(batch, 3)
    assert shared["a"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert shared["b"].shape == (3, 2, 2)
    padded = parallel.pad_to_multiple(batch["b"], 4)
    np.testing.assert_array_equal(padded, np.concatenate([batch["b"], np.zeros((2, 2), int)]))
    assert parallel.pad_to_multiple(batch["b"], 3) is not None
    assert len(parallel.pad_to_multiple(batch["b"], 3)) == 6


def test_usable_devices():
    assert jax.local_device_count() == 8
    assert [parallel.usable_devices(n) for n in (1, 2, 6, 7, 12, 64, 9)] == [1, 2, 6, 7, 6, 8, 3]


@pytest.mark.parametrize("num_devices", [2, 3, 4])
def test_keys_and_results_do_not_depend_on_the_number_of_devices(key, num_devices):
    batch = {"x": np.arange(12, dtype=np.float32)}

    def step(state, batch, key):
        keys = parallel.example_keys(key, state["step"], len(batch["x"]))
        noise = jax.vmap(jax.random.normal)(keys)
        rows = parallel.example_rows(len(batch["x"]))
        gathered = jax.lax.all_gather((noise, rows), parallel.AXIS, tiled=True)
        mean = jax.lax.pmean(jnp.mean(batch["x"] * noise), parallel.AXIS)
        return {"step": state["step"] + 1, "mean": state["mean"] + mean}, gathered

    def run(num_devices):
        mapped = parallel.over_devices(step, (None, 0, None), num_devices)
        state, drawn = {"step": jnp.int32(0), "mean": jnp.float32(0)}, []
        for _ in range(2):
            state, (noise, rows) = mapped(state, parallel.split_batch(batch, num_devices), key)
            drawn.append(np.asarray(noise))
            assert rows.tolist() == list(range(12))
        return state, drawn

    state, drawn = run(num_devices)
    expected_state, expected = run(1)
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_allclose(state["mean"], expected_state["mean"], rtol=1e-5)
    assert state["step"] == 2
    # Every example of every step has a key of its own.
    assert len(np.unique(drawn)) == 24


def test_each_process_takes_its_part_of_a_batch(monkeypatch):
    batch = {"x": np.arange(24).reshape(12, 2)}
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    parts = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(parallel.split_batch(batch, 2)["x"])
    assert parts[0].shape == (2, 2, 2)
    np.testing.assert_array_equal(np.concatenate(parts).reshape(12, 2), batch["x"])
    assert parallel.usable_devices(12) == 4
    assert len(parallel.pad_for_devices(np.zeros(7), 2)) == 12
    with pytest.raises(ValueError, match="a batch of 8 cannot be split among 3 processes"):
        parallel.usable_devices(8)
