"""DCH on MS-COCO 2014, end to end, for a GPU: 5,000 queries, 117,218 photos, 10,000 to train on.

python -m mch_jax.main --config=configs/coco_dch.py --config.dataset.root=DIR \
    --config.model.weights=alexnet-owt-7be5be79.pth

DIR holds the archives or the records made of them (docs/datasets.md). The weights are torchvision's
AlexNet with its fc6 and fc7, which are yours to bring. The agent's settings are the paper's (Sec.
5.2.2). The authors' rate of 5e-3 belongs to their own loss, on distances that are not normalised.

Not run.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.dataset.name = "coco"
    config.model.weights = "alexnet-owt-7be5be79.pth"
    return config
