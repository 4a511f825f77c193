"""The choice of the keep threshold, against plain loops and on made-up gains."""

import jax.numpy as jnp
import numpy as np
import pytest

from mch_jax import codes
from mch_jax.agent import calibration
from mch_jax.agent.calibration import NONE, Gain


def test_trial_equals_plain_loops():
    rng = np.random.default_rng(0)
    bits = rng.choice([-1, 1], (12, 3, 6)).astype(np.int8)
    bits[:4, 1] = bits[0, 0]  # some codes are equal
    labels = (rng.random((12, 3)) < 0.4).astype(np.uint8)
    labels[7] = 0  # relevant to none
    keep_prob = rng.random((12, 3)).astype(np.float32)
    packed = np.asarray(codes.pack(jnp.asarray(bits)))
    found = calibration.trial(packed, keep_prob, labels, 6, 0.6)
    kept = keep_prob >= 0.6
    kept[:, 0] = True
    scores = []
    for m in range(12):
        others = [n for n in range(12) if n != m]
        relevant = np.array([bool((labels[m] & labels[n]).any()) for n in others])
        distance = np.array(
            [min((bits[m, 0] != bits[n, t]).sum() for t in range(3) if kept[n, t]) for n in others]
        )
        if not relevant.any():
            continue
        ranking = []  # expected average precision over the orders of ties, drawn many times
        for _ in range(4000):
            order = np.lexsort((rng.random(len(others)), distance))
            hits = relevant[order]
            ranking.append((hits.cumsum() / np.arange(1, len(hits) + 1))[hits].mean())
        ball = relevant[distance == 0]
        scores.append(
            (np.mean(ranking), ball.mean() if len(ball) else 0.0, ball.sum() / relevant.sum())
        )
    np.testing.assert_allclose(found.scores[:, 0], np.array(scores)[:, 0], atol=0.02)
    np.testing.assert_allclose(found.scores[:, 1:], np.array(scores)[:, 1:], atol=1e-12)
    number = sum(len({tuple(bits[n, t]) for t in range(3) if kept[n, t]}) for n in range(12))
    assert found.codes == number


def test_gains_are_paired_differences_over_all_folds():
    rng = np.random.default_rng(1)
    scores = [[rng.random((count, 3)) for _ in range(2)] for count in (5, 9)]
    folds = [
        [calibration.Trial(x, 2.0, own) for x, own in zip((0.5, NONE), fold, strict=True)]
        for fold in scores
    ]
    rows = calibration.gains(folds, 4)
    difference = np.concatenate([fold[0] - fold[1] for fold in scores])
    assert rows[0].mean == pytest.approx(difference.mean(0))
    error = difference.std(0) / np.sqrt(14)
    assert rows[0].lower == pytest.approx(difference.mean(0) - 1.645 * error)
    assert rows[0].codes == 1.0
    assert rows[1].mean == rows[1].lower == (0, 0, 0)


def gain(threshold, mean, lower):
    return Gain(threshold, 1.5, mean, lower)


NOTHING = gain(NONE, (0, 0, 0), (0, 0, 0))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([((0.02, 0.01, 0.1), (0.01, 0.001, 0.1)), ((0.01, 0.01, 0.0), (0.005, 0.0, 0.0))], 0.5),
        ([((0.02, 0.01, 0.1), (-0.01, 0.01, 0.1)), ((0.01, 0.01, 0.0), (0.005, 0.0, 0.0))], 0.6),
        ([((0.02, 0.01, 0.1), (0.01, -0.01, 0.1)), ((0.01, 0.01, 0.0), (-0.01, 0.0, 0.0))], NONE),
    ],
    ids=["the largest gain", "mAP may fall", "a measure may fall at every threshold"],
)
def test_a_threshold_that_may_lower_a_measure_is_not_chosen(rows, expected):
    tried = [gain(0.5, *rows[0]), gain(0.6, *rows[1]), NOTHING]
    assert calibration.choose(tried, 0.2).threshold == expected


def test_thresholds_rise_from_the_given_one():
    tried = calibration.thresholds(0.45)
    assert tried[0] == 0.45
    assert tried == sorted(tried)
    assert tried[-2] < 1 < tried[-1] == NONE
