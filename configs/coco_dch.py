"""DCH on MS-COCO 2014, end to end, for a GPU: 5,000 queries, 117,218 photos, 10,000 to train on.

python -m mch_jax.main --config=configs/coco_dch.py --config.dataset.root=DIR \
    --config.model.weights=alexnet-owt-7be5be79.pth

DIR holds the archives, or the records that mch_jax.prepare makes of them (docs/datasets.md). The
weights are torchvision's AlexNet with fc6 and fc7; download them yourself. The agent's settings are
those of the paper (Sec. 5.2.2). The learning rate is not the 5e-3 of DCH's authors, whose loss uses
distances that are not normalised.

Not run.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.dataset.name = "coco"
    config.model.weights = "alexnet-owt-7be5be79.pth"
    return config
