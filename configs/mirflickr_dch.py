"""DCH on MIRFLICKR-25K, end to end, for a GPU: 5,000 queries, 19,581 photos, 10,000 to train on.

python -m mch_jax.main --config=configs/mirflickr_dch.py --config.dataset.root=DIR \
    --config.model.weights=alexnet-owt-7be5be79.pth

Photos without a label are left out; the reader's setting keep_unlabelled keeps all 25,000.
Weights and settings are those of coco_dch.py; docs/datasets.md says what DIR holds.

Not run.
"""

from configs import coco_dch


def get_config():
    config = coco_dch.get_config()
    config.dataset.name = "mirflickr"
    return config
