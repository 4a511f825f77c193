"""MMHH on MS-COCO 2014, end to end, for a GPU.

python -m mch_jax.main --config=configs/coco_mmhh.py --config.dataset.root=DIR

Settings are those of coco_dch.py, but for what methods.py changes. Not run.
"""

from configs import coco_dch, methods


def get_config():
    return methods.mmhh(coco_dch.get_config())
