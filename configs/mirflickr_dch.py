"""DCH on MIRFLICKR-25K, end to end, for a GPU: 5,000 queries, 19,581 photos, 10,000 to train on.

python -m mch_jax.main --config=configs/mirflickr_dch.py --config.dataset.root=DIR \
    --config.model.weights=alexnet-owt-7be5be79.pth

Photos without a label are left out; keep_unlabelled in config.dataset.settings keeps all 25,000.
Weights and settings are those of coco_dch.py; docs/datasets.md describes DIR.

Not run.
"""

from configs import coco_dch


def get_config():
    config = coco_dch.get_config()
    config.dataset.name = "mirflickr"
    return config
