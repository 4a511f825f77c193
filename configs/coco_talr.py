"""TALR on MS-COCO 2014, end to end, for a GPU.

python -m mch_jax.main --config=configs/coco_talr.py --config.dataset.root=DIR

The settings of coco_dch.py with the changes of methods.py.

Not run.
"""

from configs import coco_dch, methods


def get_config():
    return methods.talr(coco_dch.get_config())
