import numpy as np
import pytest

from mch_jax import batched


def test_every_call_has_the_same_size_and_padding_is_cut_off():
    sizes = []

    def double(batch):
        sizes.append((len(batch["x"]), len(batch["y"])))
        assert (batch["y"].sum(1) == 1).all()  # padding copies rows, it does not add zeros
        return {"double": 2 * batch["x"], "sum": batch["x"] + batch["y"][:, 0]}

    x = np.arange(7)
    y = np.eye(3)[x % 3]
    batches = ({"x": x[rows], "y": y[rows]} for rows in batched.split(x, 3))
    results = batched.apply_all(double, batches, 3)
    assert sizes == [(3, 3)] * 3
    np.testing.assert_array_equal(results["double"], 2 * x)
    np.testing.assert_array_equal(results["sum"], x + y[:, 0])


def test_results_keep_their_structure():
    first, second = batched.apply(lambda x: (x + 1, x.astype(str)), np.arange(2), 4)
    assert first.tolist() == [1, 2]
    assert second.tolist() == ["0", "1"]
    assert batched.apply(lambda x: x, np.arange(2), 4).tolist() == [0, 1]


@pytest.mark.parametrize("count", [0, 5])
def test_a_batch_that_does_not_fit_is_refused(count):
    with pytest.raises(ValueError, match=f"batch has {count} rows, expected between 1 and 4"):
        batched.apply(lambda x: x, np.zeros(count), 4)


def test_split_slices_lists_and_arrays():
    assert list(batched.split([1, 2, 3], 2)) == [[1, 2], [3]]
    assert [part.tolist() for part in batched.split(np.arange(4), 2)] == [[0, 1], [2, 3]]
    assert list(batched.split([], 2)) == []
