"""ITQ on a folder of your own photos, for a CPU.

python -m mch_jax.main --config=configs/folder_itq.py --config.dataset.root=DIR

Settings are those of folder_dch.py, but for what methods.py changes. Not run.
"""

from configs import folder_dch, methods


def get_config():
    return methods.itq(folder_dch.get_config())
