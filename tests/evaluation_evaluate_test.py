import itertools

import numpy as np

from mch_jax.evaluation import evaluate
from mch_jax.files.codes_file import CodeFile


def code_file(words, item, labels):
    """A codes file of 8-bit codes."""
    count, images = len(words), len(labels)
    return CodeFile(
        codes=np.array(words, np.uint8)[:, None],
        item=np.array(item, np.int64),
        ids=np.array([f"{i}.jpg" for i in range(images)]),
        keep_prob=np.ones(count, np.float32),
        box=np.zeros((count, 4), np.int32),
        labels=np.array(labels, np.uint8),
        num_bits=8,
    )


def test_f1_bucket_curves_are_those_of_algorithm_1():
    """Against a loop over the buckets in the order of Algorithm 1.

    F1 is the mean over every choice of items at the last distance that completes the k nearest.
    """
    rng = np.random.default_rng(0)
    item = np.sort(np.concatenate([np.arange(14), rng.integers(0, 14, 10)]))
    words = rng.integers(0, 256, len(item))
    labels = rng.random((14, 3)) < 0.4
    query_words = [int(words[0]), *rng.integers(0, 256, 4).tolist()]
    query_labels = [
        *(rng.random((4, 3)) < 0.5),
        np.zeros(3, bool),
    ]  # no item is relevant to the last query
    query = code_file(query_words, range(5), query_labels)
    database = code_file(words, item, labels)
    ks = [1, 3, 6, 14]
    found = evaluate.f1_bucket(query, database, evaluate.histogram(query, database), ks)
    assert found["k"] == ks
    buckets = {}
    for word, image in zip(words.tolist(), item.tolist(), strict=True):
        buckets.setdefault(word, set()).add(image)
    for column, k in enumerate(ks):
        scores, probed, nonempty = [], [], []
        for word, label in zip(query_words, query_labels, strict=True):
            relevant = {image for image in range(14) if (labels[image] & label).any()}
            if not relevant:
                continue
            met, counts = [], [0, 0]  # (distance, image) in the order of the buckets
            for mask in sorted(range(256), key=lambda mask: (mask.bit_count(), mask)):
                bucket = buckets.get(word ^ mask, set())
                known = {image for _, image in met}
                met += [(mask.bit_count(), image) for image in bucket - known]
                counts = [counts[0] + 1, counts[1] + bool(bucket)]
                if len(met) >= k:
                    break
            probed.append(counts[0])
            nonempty.append(counts[1])
            nearest = {}
            for code, image in zip(words.tolist(), item.tolist(), strict=True):
                distance = (code ^ word).bit_count()
                nearest[image] = min(distance, nearest.get(image, distance))
            last = sorted(nearest.values())[k - 1]
            assert max(distance for distance, _ in met) == last
            near = {image for image in nearest if nearest[image] < last}
            tied = [image for image in nearest if nearest[image] == last]
            scores.append(
                np.mean([
                    2 * len(relevant & (near | set(chosen))) / (k + len(relevant))
                    for chosen in itertools.combinations(tied, k - len(near))
                ])
            )  # fmt: skip
        np.testing.assert_allclose(found["f1"][column], np.mean(scores), rtol=1e-12)
        np.testing.assert_allclose(found["probed"][column], np.mean(probed), rtol=1e-12)
        np.testing.assert_allclose(found["nonempty"][column], np.mean(nonempty), rtol=1e-12)


def test_the_difference_to_the_base_is_paired_by_query():
    """An irrelevant item comes first, and in one of two queries the relevant one with other codes.

    A third query has no relevant item.
    """
    base = np.zeros((3, 9, 2), np.int64)
    base[:, 0, 0] = 1
    base[:2, 1, 1] = 1
    better = base.copy()
    better[0, :2] = [[0, 1], [1, 0]]
    found = evaluate.difference(better, base)
    assert {name: row["mean"] for name, row in found.items()} == {
        "map": 0.25, "p_at_h0": 0.5, "r_at_h0": 0.5,
    }  # fmt: skip
    np.testing.assert_allclose(found["map"]["interval"], 1.96 * 0.25 / np.sqrt(2))
    assert evaluate.difference(base, base)["map"] == {"mean": 0, "interval": 0}
    assert evaluate.difference(base[2:], base[2:])["map"] == {"mean": 0, "interval": 0}
