"""KSH on the built-in scenes, for a CPU.

python -m mch_jax.main --config=configs/scenes_ksh.py

Settings are those of scenes_dch.py, but for what methods.py changes. Not run.
"""

from configs import methods, scenes_dch


def get_config():
    return methods.ksh(scenes_dch.get_config())
