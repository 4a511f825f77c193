import jax
import jax.numpy as jnp
import numpy as np

from mch_jax import codes
from mch_jax.codes import CodeSet
from mch_jax.files import code_sets


def from_string(text: str) -> jax.Array:
    """Returns a code from its bits as the paper prints them, first bit first."""
    return codes.pack(jnp.array([1 if bit == "1" else -1 for bit in text], jnp.int8))


def code_set(rows: list[list[str]], kept: list[list[int]]) -> CodeSet:
    packed = jnp.stack([jnp.stack([from_string(x) for x in row]) for row in rows])
    count, width = len(rows), len(rows[0])
    keep_prob = jnp.linspace(1, 0, width)[None].repeat(count, 0)
    box = np.arange(count * width * 4, dtype=np.int32).reshape(count, width, 4)
    return CodeSet(packed, keep_prob, jnp.array(kept, bool), box)


def test_flatten_keeps_equal_codes_once():
    two = code_set(
        # Slots 1, 2 and 3 have equal codes. Slot 1 is not kept, so the file has the code of slot 2.
        [["010", "101", "101", "101"], ["111", "111", "000", "111"]],
        [[1, 0, 1, 1], [1, 1, 0, 1]],
    )
    file = code_sets.flatten(two, np.array(["a", "b"]), np.eye(2, dtype=np.uint8), 3)
    assert file.item.tolist() == [0, 0, 1]
    assert file.codes.tolist() == [[0b010], [0b101], [0b111]]
    np.testing.assert_allclose(file.keep_prob, [1, 1 / 3, 1])
    assert file.box.tolist() == [two.box[0, 0].tolist(), two.box[0, 2].tolist(), [16, 17, 18, 19]]
    assert file.ids.tolist() == ["a", "b"]
    assert [x.dtype for x in file[:2]] == [np.uint8, np.int64]


def test_by_num_codes_yields_every_code_once():
    three = code_set(
        [["010", "101", "011"], ["111", "110", "000"], ["001", "100", "110"]],
        [[1, 1, 0], [1, 0, 0], [1, 0, 1]],
    )
    file = code_sets.flatten(three, np.array(["a", "b", "c"]), np.zeros((3, 1), np.uint8), 3)
    (one, packed_one), (two, packed_two) = code_sets.by_num_codes(file)
    assert one.tolist() == [1]
    assert packed_one.tolist() == [[[0b111]]]
    assert two.tolist() == [0, 2]
    assert packed_two.tolist() == [[[0b010, 0b100]], [[0b101, 0b011]]]
    none = file._replace(codes=file.codes[:0], item=file.item[:0], ids=file.ids[:0])
    assert list(code_sets.by_num_codes(none)) == []
