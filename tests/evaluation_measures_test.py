"""The table of measures agrees with what a run writes and with README."""

import json
import pathlib
import re

import pytest

from mch_jax.evaluation import measures, results
from mch_jax.report import page

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_readme_explains_every_measure_in_the_same_words():
    section = README.read_text().partition("## Measures and rules")[2].partition("\n## ")[0]
    table = section.partition("| in `results.json` |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", table, re.M)
    assert rows == [tuple(term) for term in measures.terms()]


def test_the_table_has_what_a_run_writes_and_nothing_else(finished):
    found = json.loads((finished / "results.json").read_text())
    keys = {measure.key for measure in measures.MEASURES}
    assert {choice.key for choice, _ in measures.chosen(found)} == {
        "base", "mch", *found["controls"],
    }  # fmt: skip
    for choice, row in measures.chosen(found):
        assert set(row) == keys | {"f1_bucket", "probe"}, choice.key
        assert set(row["f1_bucket"]) == {"k", "f1", *(cost.key for cost in measures.COSTS)}
    assert {measures.CHANCE.key, "base", "mch"} < set(found)


def test_results_without_a_newer_measure_are_still_shown(finished):
    found = json.loads((finished / "results.json").read_text())
    for row in (found["base"], found["mch"], *found["controls"].values()):
        del row["p_at_h2"], row["f1_bucket"]["nonempty"]
    del found["controls"]["oracle"], found["controls"]["oracle_ap"], found["oracle_share"]
    assert "p_at_h2" not in results.text_table(found)
    assert "oracle" not in results.text_table(found)
    assert [cost.key for cost in measures.costs(found)] == ["probed"]
    assert "p_at_h2" not in [term.key for term in measures.terms(found)]
    assert "P@H≤2" not in page._results(found)
    assert "Oracle" not in page._results(found)


def test_titles_and_keys_are_different_from_each_other():
    assert len(measures.MEASURE) == len(measures.MEASURES)
    assert len({measure.title for measure in measures.MEASURES}) == len(measures.MEASURES)
    assert [measure.key for measure in measures.MEASURES if measure.is_cost] == [
        "anhc", "bytes_per_image",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("threshold", "expected", "found", "warns"),
    [
        (0.5, 1.99, 3.04, True),
        (0.55, 1.7, 1.0, True),
        (0.6, 2.55, 2.79, False),
        (0.7, 1.01, 1.0, False),
        (2.0, 1.0, 1.0, False),
    ],
)
def test_a_calibration_that_does_not_carry_over_is_noted(threshold, expected, found, warns):
    rows = [{"keep_threshold": threshold, "codes": expected}]
    results = {
        "dataset": {"train": 3600, "queries": 1000},
        "calibration": {"keep_threshold": threshold, "gains": rows},
        "mch": {"anhc": found},
    }
    sentences = measures.notes(results)
    assert len(sentences) == warns
    if warns:
        assert f"MCH keeps {found:.2f} codes per photo, but kept {expected:.2f}" in sentences[0]
