"""DPHN on the built-in scenes, for a CPU.

python -m mch_jax.main --config=configs/scenes_dphn.py

The settings of scenes_dch.py with the changes of methods.py.

Not run.
"""

from configs import methods, scenes_dch


def get_config():
    return methods.dphn(scenes_dch.get_config())
