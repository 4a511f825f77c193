"""DPHN on MS-COCO 2014, end to end, for a GPU.

python -m mch_jax.main --config=configs/coco_dphn.py --config.dataset.root=DIR

The settings of coco_dch.py with the changes of methods.py.

Not run.
"""

from configs import coco_dch, methods


def get_config():
    return methods.dphn(coco_dch.get_config())
