"""Batch sizes: their limits, those that fit, and nothing written before they are checked."""

from typing import Any

import pytest
from tiny_run import tiny

from mch_jax import config_files, pipeline
from mch_jax.training import batch_sizes, claims, run


def test_the_sizes_of_a_small_training_set():
    config: Any = config_files.load("folder_dch")
    assert batch_sizes.limits(config, 144)["base"][0] == 96  # two thirds
    assert batch_sizes.limits(config, 144)["agent"][0] == 5 * 96
    sizes = batch_sizes.fitted(config, 144)
    assert (sizes.base.batch_size, sizes.agent.batch_size) == (64, 256)
    sizes = batch_sizes.fitted(config, 3600)
    assert (sizes.base.batch_size, sizes.agent.batch_size) == (128, 2048)
    assert config.base.batch_size == 0
    for count in range(4, 300):
        batch_sizes.check(batch_sizes.fitted(config, count), count)
    with pytest.raises(ValueError, match="there are 2 training photos, of which one in 3 is left"):
        batch_sizes.check(config, 2)


def test_a_wrong_size_is_refused_before_anything_is_written(tmp_path):
    config = tiny(agent__batch_size=41)
    reason = r"expected 2 to 40: there are 40 training photos; set --config.agent.batch_size=32"
    with pytest.raises(ValueError, match=reason):
        pipeline.run_stages(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_the_sizes_that_were_chosen(tmp_path):
    config = tiny(base__batch_size=0, agent__batch_size=0)
    with claims.claimed(tmp_path):
        for _ in range(2):
            opened = run.open_run(config, tmp_path).config
            assert (opened.base.batch_size, opened.agent.batch_size) == (32, 32)
        with pytest.raises(ValueError, match="belongs to a run with base.batch_size = 32"):
            run.open_run(tiny(agent__batch_size=0), tmp_path)
    assert run.read_config(tmp_path)["base"]["batch_size"] == 32
