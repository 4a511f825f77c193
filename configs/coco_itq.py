"""ITQ on MS-COCO 2014, on AlexNet's fc7, for a GPU.

python -m mch_jax.main --config=configs/coco_itq.py --config.dataset.root=DIR

The settings of coco_dch.py with the changes of methods.py.

Not run.
"""

from configs import coco_dch, methods


def get_config():
    return methods.itq(coco_dch.get_config())
