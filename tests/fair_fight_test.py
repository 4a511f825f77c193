"""The tables of the fair comparison, from made-up runs."""

import json

import numpy as np
import pytest
from scipy import stats

from launch import fair_fight
from mch_jax.evaluation import rival_table

QUERIES = 40


def write(root, seed, rows=("base_gqr", "mch_gqr")):
    rng = np.random.default_rng(seed)
    folder = root / f"coco18_dch_32_{seed}"
    folder.mkdir(parents=True)
    arrays, summary = {}, {}
    for i, name in enumerate(rows):
        f1 = np.sort(rng.random((4, QUERIES)), 0) * 0.5 + 0.1 * i
        arrays[f"{name}/f1"] = f1
        summary[name] = {
            "f1": f1.mean(1).tolist(), "recall": [0.1, 0.2, 0.3, 0.4],
            "candidates": [500.0, 700.0, 900.0, 1100.0], "map": 0.5,
            "codes_per_image": 1.0 + i, "bytes_per_image": 8.0 + 8 * i,
        }  # fmt: skip
    np.savez(folder / rival_table.ARRAYS, **arrays)
    table = {"budget": [1, 8, 33, 132], "rows": summary}
    (folder / rival_table.FILE).write_text(json.dumps(table))
    (folder / "config.json").write_text(json.dumps({"method": "dch", "num_bits": 32, "seed": seed}))
    return summary


def test_differences_are_paired_by_seed(tmp_path):
    rows = [write(tmp_path, seed) for seed in range(3)]
    ((key, runs),) = fair_fight.read(tmp_path).items()
    assert key == ("dch", 32)
    assert [run.seed for run in runs] == [0, 1, 2]
    found = fair_fight.difference(runs, "mch_gqr", "base_gqr", 2)
    values = [row["mch_gqr"]["f1"][2] - row["base_gqr"]["f1"][2] for row in rows]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(
        [found.mean - found.half, found.mean + found.half], [low, high], rtol=1e-9
    )


def test_a_single_seed_has_an_interval_over_its_queries(tmp_path):
    write(tmp_path, 0)
    ((_, runs),) = fair_fight.read(tmp_path).items()
    found = fair_fight.difference(runs, "mch_gqr", "base_gqr", 1)
    paired = runs[0].by_query["mch_gqr/f1"][1] - runs[0].by_query["base_gqr/f1"][1]
    np.testing.assert_allclose(found.mean, paired.mean())
    np.testing.assert_allclose(found.half, 1.96 * stats.sem(paired), rtol=0.1)


def test_f1_at_equal_codes_read_lies_between_budgets(tmp_path):
    row = write(tmp_path, 0)["base_gqr"]
    np.testing.assert_allclose(fair_fight.at_read(row, 800), np.mean(row["f1"][1:3]))
    assert np.isnan(fair_fight.at_read(row, 499))
    assert np.isnan(fair_fight.at_read(row, 1101))


def test_the_tables_have_every_row(tmp_path, capsys):
    for seed in range(2):
        write(tmp_path, seed)
    assert fair_fight.main([f"--root={tmp_path}"]) == 0
    text = capsys.readouterr().out
    assert "## dch, 32 bits, n = 2 (seeds 0, 1)" in text
    assert text.count("| `mch_gqr` |") == 2
    assert text.count("`mch_gqr` minus `base_gqr`") == 1


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no rivals.json; run mch_jax.rivals first"):
        fair_fight.main([f"--root={tmp_path}"])


@pytest.mark.parametrize(("value", "text"), [(0.2275, ".2275"), (1.0, "1.0000")])
def test_numbers(value, text):
    assert fair_fight.number(value) == text
