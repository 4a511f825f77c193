"""Figures of searches at equal cost, as they are drawn from results."""

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from mch_jax.report import figures, plots

BUDGET = [1, 8, 33, 132]


def curve(scale, candidates):
    return {"f1": [0.1 * scale * x for x in (1, 2, 3, 4)], "candidates": candidates}


def results(orders=("hamming", "gqr"), candidates=(500, 600, 700, 900)) -> dict[str, Any]:
    """Returns made-up results with F1 and codes read for each budget."""
    return {
        kind: {
            "probe": {"budget": BUDGET} | {order: curve(i + j, candidates) for order in orders},
            "bytes_per_image": 8.0 * i,
        }
        for kind, i, j in (("base", 1, 0), ("mch", 2, 0))
    }


def drawn(plot):
    axes = Figure().add_subplot()
    plot.draw(axes, plots.SCHEMES[0])
    return axes


def test_every_axis_of_cost_has_a_figure():
    found = {plot.name: plot for plot in figures.f1_at_equal_cost(results())}
    assert set(found) == {"equal-buckets", "equal-candidates", "equal-bytes"}
    buckets, read, size = map(drawn, found.values())
    assert [label.get_text() for label in buckets.get_xticklabels()] == ["1", "8", "33", "132"]
    assert len(buckets.lines) == len(read.lines) == 4
    for line in read.lines:
        np.testing.assert_array_equal(line.get_xdata(), [500, 600, 700, 900])
    points = [line for line in size.lines if line.get_label() in ("base", "MCH")]
    x, y = (np.array([line.get_data()[i] for line in points]) for i in (0, 1))
    np.testing.assert_array_equal(x, [[8.0] * 4, [16.0] * 4])
    np.testing.assert_allclose(y, [[0.1, 0.2, 0.3, 0.4], [0.2, 0.4, 0.6, 0.8]])
    assert [text.get_text() for text in size.texts] == [
        "1 bucket", "8 buckets", "33 buckets", "132 buckets",
    ]  # fmt: skip
    assert size.get_ylim()[1] > 0.8
    assert "MCH with 16.0 bytes, 0.200 at 1" in found["equal-bytes"].alt


@pytest.mark.parametrize(
    ("candidates", "labels"),
    [((1, 30, 400, 6000), ["1", "2", "5", "10"]), ((500, 600, 700, 900), None)],
)
def test_codes_read_have_a_logarithmic_axis_where_they_differ_much(candidates, labels):
    axes = drawn(figures.f1_at_equal_cost(results(candidates=candidates))[1])
    assert axes.get_xscale() == ("symlog" if labels else "linear")
    if labels:
        assert [label.get_text() for label in axes.get_xticklabels()][:4] == labels


def test_results_without_logits_have_the_hamming_order_alone():
    found = figures.f1_at_equal_cost(results(orders=("hamming",)))
    assert len(drawn(found[0]).lines) == 2
    assert "GQR" not in "".join(plot.caption + plot.alt for plot in found)


def test_results_of_an_earlier_version_have_no_such_figure():
    assert figures.f1_at_equal_cost({"base": {}, "mch": {}}) == []
