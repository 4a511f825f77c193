import jax
import jax.numpy as jnp
import numpy as np

from mch_jax import groups, pairs


def clusters(rng, num_images=30, num_regions=3, width=5, num_clusters=4):
    """Returns features around a few directions, and the direction of each region."""
    directions = np.eye(width, dtype=np.float32)[:num_clusters]
    cluster = rng.integers(num_clusters, size=(num_images, num_regions))
    noise = rng.normal(0, 0.05, (num_images, num_regions, width)).astype(np.float32)
    length = rng.uniform(0.5, 20, (num_images, num_regions, 1)).astype(np.float32)
    return (directions[cluster] + noise) * length, cluster


def test_similarity_of_groups_equals_a_double_loop(key):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(23, 3, 5)).astype(np.float32)
    centres = np.asarray(groups.centres(features.reshape(-1, 5), 7, key))
    for num_nearest in (1, 2):
        labels = groups.multi_hot(features, centres, num_nearest)
        packed = pairs.pack_labels(labels)
        found = np.asarray(pairs.similarity(packed, packed))
        for i, own in enumerate(features):
            for j, other in enumerate(features):
                nearest = []
                for photo in (own, other):
                    cosine = photo @ centres.T / np.linalg.norm(photo, axis=1, keepdims=True)
                    nearest.append(set(np.argsort(-cosine, 1)[:, :num_nearest].ravel().tolist()))
                assert found[i, j] == bool(nearest[0] & nearest[1])
        np.testing.assert_array_equal(found, found.T)
        assert found.diagonal().all()
        assert labels.sum(1).min() >= num_nearest
        assert labels.sum(1).max() <= 3 * num_nearest


def test_centres_equal_a_plain_loop(key):
    points = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    expected = unit[np.asarray(jax.random.permutation(key, 40))[:6]]
    for _ in range(groups.NUM_TURNS):
        nearest = [int(np.argmax([x @ c for c in expected])) for x in unit]
        for group in range(6):
            own = [x for x, n in zip(unit, nearest, strict=True) if n == group]
            if own:
                total = np.sum(own, 0)
                expected[group] = total / np.linalg.norm(total)
    np.testing.assert_allclose(groups.centres(points, 6, key), expected, atol=1e-5)


def test_groups_are_directions_whatever_the_length():
    features, cluster = clusters(np.random.default_rng(0))
    # Of two centres that start in one cluster none leaves it; this key has one in each.
    flat = features.reshape(-1, 5)
    for seed in range(20):
        centres = groups.centres(flat, 4, jax.random.key(seed))
        if len(set(np.argmax(centres, 1).tolist())) == 4:
            break
    labels = groups.multi_hot(features, np.asarray(centres), 1)
    order = np.argmax(centres, 1)
    for image, own in enumerate(cluster):
        assert set(order[labels[image] > 0].tolist()) == set(own.tolist())


def test_a_centre_without_regions_stays_and_zeros_have_a_group(key):
    points = np.zeros((4, 3), np.float32)
    points[0] = [1, 0, 0]
    centres = groups.centres(points, 4, key)
    assert np.isfinite(centres).all()
    labels = groups.multi_hot(points[:, None], np.asarray(centres), 1)
    assert labels.sum(1).tolist() == [1] * 4
    assert groups.multi_hot(points[:0, None], np.asarray(centres), 1).shape == (0, 4)


def test_to_unit():
    found = groups.to_unit(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0]], rtol=1e-6)
