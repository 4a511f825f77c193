"""KSH on MS-COCO 2014, on AlexNet's fc7, for a GPU.

python -m mch_jax.main --config=configs/coco_ksh.py --config.dataset.root=DIR

Settings are those of coco_dch.py, but for what methods.py changes. Not run.
"""

from configs import coco_dch, methods


def get_config():
    return methods.ksh(coco_dch.get_config())
