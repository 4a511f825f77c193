import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import codes, pairs


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """Returns multi-hot labels of 50 images, some without any; 40 classes take two words."""
    return (np.random.default_rng(0).random((50, 40)) < 0.04).astype(np.uint8)


def random_codes(shape: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


def test_labels_are_packed_least_significant_bit_first():
    labels = np.zeros((2, 33), np.uint8)
    labels[0, [0, 3]] = 1
    labels[1, 32] = 1
    np.testing.assert_array_equal(pairs.pack_labels(labels), [[9, 0], [0, 1]])


def test_similarity_is_a_shared_label(labels):
    packed = jnp.asarray(pairs.pack_labels(labels))
    found = pairs.similarity(packed[:7], packed)
    expected = [[bool((a & b).any()) for b in labels] for a in labels[:7]]
    np.testing.assert_array_equal(found, expected)
    assert not labels.any(axis=1).all()  # some image has no label


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_similar_fraction_counts_every_pair_once(labels, monkeypatch, block):
    monkeypatch.setattr(pairs, "_BLOCK", block)
    repeated = np.concatenate([labels, labels[:20]])
    similar = [
        bool((a & b).any())
        for i, a in enumerate(repeated)
        for j, b in enumerate(repeated)
        if i != j
    ]
    assert pairs.similar_fraction(pairs.pack_labels(repeated)) == np.mean(similar)


def test_similar_fraction_needs_two_images():
    with pytest.raises(ValueError, match="at least 2"):
        pairs.similar_fraction(np.zeros((1, 1), np.uint32))


@pytest.mark.parametrize("num_bits", [1, 11, 64])
def test_relaxed_distance_of_codes_is_hamming(num_bits):
    a, b = random_codes((5, num_bits), 0), random_codes((9, num_bits), 1)
    relaxed = pairs.relaxed_distance(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    hamming = codes.hamming_distance(
        codes.pack(jnp.asarray(a))[:, None], codes.pack(jnp.asarray(b))[None]
    )
    np.testing.assert_array_equal(relaxed, hamming)


def test_both_kinds_of_pairs_have_the_same_total_weight(labels):
    packed = pairs.pack_labels(labels)
    fraction = pairs.similar_fraction(packed)
    similar = np.asarray(pairs.similarity(jnp.asarray(packed), jnp.asarray(packed)))
    weight = np.asarray(pairs.balanced_weight(jnp.asarray(similar), fraction))
    others = ~np.eye(len(labels), dtype=bool)
    count = others.sum()
    assert weight[similar & others].sum() == pytest.approx(count, rel=1e-5)
    assert weight[~similar & others].sum() == pytest.approx(count, rel=1e-5)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_kind_of_pair_that_does_not_occur_has_a_finite_weight(fraction):
    assert jnp.isfinite(pairs.balanced_weight(jnp.array([True, False]), fraction)).all()
