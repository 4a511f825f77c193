"""HashNet on MIRFLICKR-25K, end to end, for a GPU.

python -m mch_jax.main --config=configs/mirflickr_hashnet.py --config.dataset.root=DIR

Settings are those of mirflickr_dch.py, but for what methods.py changes. Not run.
"""

from configs import methods, mirflickr_dch


def get_config():
    return methods.hashnet(mirflickr_dch.get_config())
