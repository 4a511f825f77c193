"""ITQ on NUS-WIDE's 21 most frequent concepts, on AlexNet's fc7, for a GPU.

python -m mch_jax.main --config=configs/nuswide_itq.py --config.dataset.root=DIR

The settings of nuswide_dch.py with the changes of methods.py.

Not run.
"""

from configs import methods, nuswide_dch


def get_config():
    return methods.itq(nuswide_dch.get_config())
