"""DPHN on a folder of your own photos, for a CPU.

python -m mch_jax.main --config=configs/folder_dphn.py --config.dataset.root=DIR

The settings of folder_dch.py with the changes of methods.py.

Not run.
"""

from configs import folder_dch, methods


def get_config():
    return methods.dphn(folder_dch.get_config())
