"""The demo with the scenes of seed 0 for every seed of the training: the spread of README's table.

    for seed in 0 1 2 3 4; do
      python -m mch_jax.main --config=launch/demo_seeds.py --workdir=runs/seeds/$seed \
        --config.seed=$seed --config.cache_dir=runs/seeds/features
    done
    python launch/demo_table.py --runs=$(echo runs/seeds/? | tr " " ,)  # prints the table

The runs share the scenes and their features. For seed 0 the results are those of the demo.
"""

from typing import Any

from configs import scenes_dch


def get_config():
    """Returns the config."""
    config: Any = scenes_dch.get_config()
    config.dataset.settings = {"seed": 0}
    return config
