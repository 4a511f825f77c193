"""DPHN on NUS-WIDE's 21 most frequent concepts, end to end, for a GPU.

python -m mch_jax.main --config=configs/nuswide_dphn.py --config.dataset.root=DIR

The settings of nuswide_dch.py with the changes of methods.py.

Not run.
"""

from configs import methods, nuswide_dch


def get_config():
    return methods.dphn(nuswide_dch.get_config())
