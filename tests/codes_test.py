import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import codes

LENGTHS = [1, 3, 31, 32, 33, 48, 64]


def random_codes(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


def from_string(text: str) -> jax.Array:
    """Returns a code from its bits as the paper prints them, first bit first."""
    return codes.pack(jnp.array([1 if bit == "1" else -1 for bit in text], jnp.int8))


def test_figure_1():
    # The codes 010 and 101 of one image differ in every bit. A query for the second concept has the
    # code 101. Its distance to the image is 3 bits with the first code only, and 0 with both codes.
    image, region, query = from_string("010"), from_string("101"), from_string("101")
    assert codes.hamming_distance(image, query) == 3
    assert codes.hamming_distance(region, query) == 0
    assert min(codes.hamming_distance(x, query) for x in (image, region)) == 0
    # Least significant bit first.
    assert image.tolist() == [0b010]
    assert region.tolist() == [0b101]
    assert from_string("110").tolist() == [0b011]


def test_sign_of_zero_is_plus_one():
    assert codes.sign(jnp.array([[-2.0, -0.0, 0.0, 0.5]])).tolist() == [[-1, 1, 1, 1]]


@pytest.mark.parametrize("num_bits", LENGTHS)
def test_round_trips(num_bits):
    original = random_codes(num_bits, 2, 5, num_bits)
    packed = codes.pack(jnp.asarray(original))
    assert packed.shape == (2, 5, codes.num_words(num_bits))
    np.testing.assert_array_equal(codes.unpack(packed, num_bits), original)
    data = codes.to_bytes(np.asarray(packed), num_bits)
    assert data.shape == (2, 5, -(-num_bits // 8))
    np.testing.assert_array_equal(codes.from_bytes(data, num_bits), packed)
    # NumPy's function reads the bits in the order of the file format. Padding bits are zero.
    bits = np.unpackbits(data, axis=-1, bitorder="little")
    np.testing.assert_array_equal(bits[..., :num_bits], original > 0)
    assert not bits[..., num_bits:].any()


@pytest.mark.parametrize("num_bits", [3, 33, 64])
def test_hamming_distance_equals_the_loop(num_bits):
    a, b = random_codes(0, 4, num_bits), random_codes(1, 6, num_bits)
    packed_a, packed_b = codes.pack(jnp.asarray(a)), codes.pack(jnp.asarray(b))
    distance = codes.hamming_distance(packed_a[:, None], packed_b[None])
    expected = [[sum(x != y) for y in b] for x in a]
    np.testing.assert_array_equal(distance, expected)


def test_a_further_code_never_increases_a_distance():
    items, queries = random_codes(0, 20, 6, 33), random_codes(1, 7, 33)
    packed, query = codes.pack(jnp.asarray(items)), codes.pack(jnp.asarray(queries))
    distance = codes.hamming_distance(query[:, None, None], packed[None])
    nearest = np.minimum.accumulate(distance, 2)
    assert (np.diff(nearest, axis=2) <= 0).all()


def test_first_of_equals_equals_the_loop():
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 3, (50, 5, 2)).astype(np.uint32)
    kept = rng.random((50, 5)) < 0.7
    result = np.asarray(codes.first_of_equals(jnp.asarray(packed), jnp.asarray(kept)))
    for row in range(50):
        seen = set()
        for slot in range(5):
            code = tuple(packed[row, slot])
            assert result[row, slot] == (kept[row, slot] and code not in seen)
            if kept[row, slot]:
                seen.add(code)


def test_both_forms_of_weighted_counts_equal_bincount():
    rng = np.random.default_rng(0)
    bins, weight = rng.integers(0, 7, 500).astype(np.int32), rng.integers(-3, 4, 500)
    expected = np.bincount(bins, weight, 9).astype(int)
    for counts in (codes.counts_by_scatter, codes.counts_by_reduction, codes.weighted_counts):
        result = jax.jit(counts, static_argnums=2)(bins, weight.astype(np.int32), 9)
        assert result.tolist() == expected.tolist()


def test_distance_to_equals_hamming_distance():
    rng = np.random.default_rng(1)
    one, many = (
        rng.integers(0, 2**32, (1, 3), np.uint32),
        rng.integers(0, 2**32, (40, 3), np.uint32),
    )
    expected = codes.hamming_distance(one, many)
    np.testing.assert_array_equal(codes.distance_to(one[0], many.T), expected)
