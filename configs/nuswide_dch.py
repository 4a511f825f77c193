"""DCH on NUS-WIDE, its 21 most frequent concepts, end to end, for a GPU.

python -m mch_jax.main --config=configs/nuswide_dch.py --config.dataset.root=DIR \
    --config.model.weights=alexnet-owt-7be5be79.pth

100 queries and 500 training photos per class; the database has 193,734 photos. Weights and settings
are those of coco_dch.py; docs/datasets.md describes DIR.

Not run.
"""

from configs import coco_dch


def get_config():
    config = coco_dch.get_config()
    config.dataset.name = "nuswide"
    return config
