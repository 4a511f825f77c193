"""DPHN on coco18, 9,600 MS-COCO photos with 18 labels, for a CPU.

python -m mch_jax.main --config=configs/coco18_dphn.py --config.dataset.root=DIR

The settings of coco18_dch.py with the changes of methods.py.

Not run.
"""

from configs import coco18_dch, methods


def get_config():
    return methods.dphn(coco18_dch.get_config())
