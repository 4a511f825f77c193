import copy
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from mch_jax.evaluation import comparison, sweep
from mch_jax.report import paper_tables


def test_interval_of_three_seeds():
    # Student's t with 2 degrees of freedom: 4.3027.
    mean, half, count = comparison.estimate([1.0, 2.0, 3.0])
    assert (mean, count) == (2.0, 3)
    assert half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert (
        paper_tables.cell(comparison.Estimate(0.01234, 0.005, 3), 3, signed=True)
        == "+0.012 ± 0.005"
    )


def test_one_seed_has_no_interval():
    found = comparison.estimate([0.25])
    assert math.isnan(found.half)
    assert paper_tables.cell(found, 2) == "0.25"


def test_buckets_between_two_points_are_interpolated_in_logarithms():
    curve = {"f1": [0.0, 0.2, 0.4, 0.3], "probed": [1, 10, 1000, 10000]}
    assert comparison.buckets_at(curve, "probed", 0.3) == pytest.approx(100)
    assert comparison.buckets_at(curve, "probed", 0.4) == pytest.approx(1000)


def test_bucket_ratio_is_one_for_equal_curves_and_ten_for_a_tenth():
    base = {"f1": [0.0, 0.2, 0.4], "probed": [10, 100, 1000]}
    mch = base | {"probed": [1, 10, 100]}
    pair = {"base": {"f1_bucket": base}, "mch": {"f1_bucket": mch}}
    same = {"base": {"f1_bucket": base}, "mch": {"f1_bucket": base}}
    np.testing.assert_allclose(comparison.bucket_ratios([pair], "probed"), 10)
    np.testing.assert_allclose(comparison.bucket_ratios([pair, same], "probed"), np.sqrt(10))


@pytest.fixture(scope="module")
def root(finished, tmp_path_factory):
    """Two seeds of a tiny run, whose MCH is better than the base by known amounts."""
    root = tmp_path_factory.mktemp("grid")
    results = json.loads((finished / "results.json").read_text())
    for seed in range(2):
        shutil.copytree(finished, root / f"scenes_dch_12_{seed}")
        other = copy.deepcopy(results) | {"seed": seed}
        other["mch"]["map"] = results["base"]["map"] + 0.1 * (1 + seed)
        (root / f"scenes_dch_12_{seed}" / "results.json").write_text(json.dumps(other))
    return root


def test_differences_are_paired_by_seed(root):
    runs = comparison.read_runs(root)
    found = comparison.difference(runs["dch", 12], "map", "never")
    assert found.mean == pytest.approx(0.15)
    # t with 1 degree of freedom is 12.706; both seeds differ from the mean by 0.05.
    assert found.half == pytest.approx(12.706 * 0.05, abs=1e-4)


def test_a_sweep_at_the_runs_own_settings_gives_the_runs_own_measures(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    own, never = sweep.sweep(tmp_path / "run", [0.5], [0.45, 1.0])
    results = json.loads((finished / "results.json").read_text())
    assert own == {"crop_ratio": 0.5, "keep_threshold": 0.45} | {
        name: pytest.approx(results["mch"][name]) for name in sweep.MEASURES
    }
    assert never["anhc"] == 1.0
    # A crop of ratio 1 is the whole image, so all codes of an item are equal and count once.
    (whole,) = sweep.sweep(tmp_path / "run", [1.0], [0.0])
    assert whole["anhc"] == 1.0


def test_everything_is_written(root, tmp_path):
    sweep.sweep(root / "scenes_dch_12_0", [0.5, 0.7], [0.0, 0.5])
    written = paper_tables.write(root, tmp_path)
    names = ["recall.png", "precision.png", "f1-12.png", "gallery.png", "sensitivity.png"]
    assert [path.name for path in written] == ["tables.md", *names]
    for path in written[1:]:
        with Image.open(path) as image:
            assert np.asarray(image.convert("L")).std() > 1, f"{path} is blank"
    text = written[0].read_text()
    assert "| DCH | 12 | 2 | +0.1500 ± 0.6353 |" in text
    assert "| σ = 0.7 |" in text


@pytest.mark.parametrize(
    ("ratios", "thresholds", "message"),
    [([0.0], [0.5], "--ratios has 0"), ([1.5], [0.5], "1.5"), ([0.5], [-1.0], "--thresholds")],
)
def test_numbers_out_of_range_are_refused(finished, ratios, thresholds, message):
    with pytest.raises(ValueError, match=message):
        sweep.sweep(finished, ratios, thresholds)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run"):
        comparison.read_runs(tmp_path)
