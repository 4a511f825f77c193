"""The label head on features that the base model does not have."""

import numpy as np

from mch_jax.agent import label_head


def photos(count, seed):
    """Returns features of three views of photos, of which some columns show the labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 3)) < 0.4).astype(np.uint8)
    views = rng.normal(size=(count, 3, 8)).astype(np.float32)
    views[:, :, :3] += 3 * labels[:, None]
    return 5 * views + 2, labels


def test_the_head_tells_labels_of_photos_that_it_has_not_seen():
    views, labels = photos(300, 0)
    head = label_head.fit(views.astype(np.float16), labels, 0)
    unseen, truth = photos(200, 1)
    logits = np.asarray(label_head.logits(head, unseen))
    assert logits.shape == (200, 3, 3)
    for label in range(3):  # a photo with the label ranks before one without it
        with_it, without = (logits[truth[:, label] == x, :, label].ravel() for x in (1, 0))
        assert (with_it[:, None] > without[None]).mean() > 0.85


def test_an_ensemble_has_the_mean_of_the_logits():
    rng = np.random.default_rng(2)
    shapes = {
        "hidden_kernel": (1, 5, 4),
        "hidden_bias": (1, 4),
        "kernel": (1, 4, 3),
        "bias": (1, 3),
    }
    heads = [
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(3)
    ]
    features = rng.normal(size=(7, 5)).astype(np.float32)
    expected = np.mean([label_head.logits(head, features) for head in heads], 0)
    result = label_head.logits(label_head.ensemble(heads), features)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    hidden = np.maximum(features @ heads[0]["hidden_kernel"][0] + heads[0]["hidden_bias"], 0)
    plain = hidden @ heads[0]["kernel"][0] + heads[0]["bias"]
    np.testing.assert_allclose(label_head.logits(heads[0], features), plain, rtol=1e-4, atol=1e-5)
