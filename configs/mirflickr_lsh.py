"""LSH on MIRFLICKR-25K, on AlexNet's fc7, for a GPU.

python -m mch_jax.main --config=configs/mirflickr_lsh.py --config.dataset.root=DIR

The settings of mirflickr_dch.py with the changes of methods.py.

Not run.
"""

from configs import methods, mirflickr_dch


def get_config():
    return methods.lsh(mirflickr_dch.get_config())
