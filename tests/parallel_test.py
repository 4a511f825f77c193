import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import collectives
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
        rows = parallel.example_rows(len(batch["x"]))
        keys = parallel.example_keys(key, state["step"], rows)
        noise = jax.vmap(jax.random.normal)(keys)
        assert parallel.whole_size(len(rows)) == 12
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


@pytest.mark.parametrize("num_devices", [1, 4])
def test_gather_puts_rows_of_several_types_together(num_devices):
    rng = np.random.default_rng(0)
    arrays = {
        "float": rng.normal(size=(8, 3, 2)).astype(np.float32),
        "words": rng.integers(0, 2**32, (8, 2), np.uint32),
        "row": np.arange(8, dtype=np.int32),
    }
    mapped = parallel.mapped_over(
        lambda tree: collectives.gather(tree, parallel.AXIS),
        (0,), jax.local_devices()[:num_devices], (),
    )  # fmt: skip
    split = parallel.split_batch(arrays, num_devices)
    jax.tree.map(np.testing.assert_array_equal, dict(mapped(split)), arrays)
    text = mapped.lower(split).as_text()
    assert text.count("stablehlo.all_gather") == (num_devices > 1)


def test_the_whole_batch_passes_its_gradient_to_the_rows_of_each_device():
    logits = np.arange(12, dtype=np.float32).reshape(4, 3)
    weights = np.arange(12, dtype=np.float32).reshape(4, 3) ** 2

    def gradient(own):
        def loss(own):
            whole, _ = collectives.whole_batch(own, own[:, :1].astype(jnp.uint32), parallel.AXIS)
            return jnp.sum(weights * whole)

        grads = jax.grad(loss)(own)
        return jax.lax.all_gather(grads, parallel.AXIS, tiled=True)

    mapped = parallel.mapped_over(gradient, (0,), jax.local_devices()[:2], ())
    found = mapped(parallel.split_batch(logits, 2))
    np.testing.assert_array_equal(found, 2 * weights)
