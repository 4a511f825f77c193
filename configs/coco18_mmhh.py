"""MMHH on coco18, 9,600 MS-COCO photos with 18 labels, for a CPU.

python -m mch_jax.main --config=configs/coco18_mmhh.py --config.dataset.root=DIR

Settings are those of coco18_dch.py, but for what methods.py changes. Not run.
"""

from configs import coco18_dch, methods


def get_config():
    return methods.mmhh(coco18_dch.get_config())
