"""DPHN on MIRFLICKR-25K, end to end, for a GPU.

python -m mch_jax.main --config=configs/mirflickr_dphn.py --config.dataset.root=DIR

The settings of mirflickr_dch.py with the changes of methods.py.

Not run.
"""

from configs import methods, mirflickr_dch


def get_config():
    return methods.dphn(mirflickr_dch.get_config())
