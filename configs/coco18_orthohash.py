"""OrthoHash on coco18, 9,600 MS-COCO photos with 18 labels, for a CPU.

python -m mch_jax.main --config=configs/coco18_orthohash.py --config.dataset.root=DIR

The settings of coco18_dch.py with the changes of methods.py, and a threshold and a weight of the
label head that were chosen on training photos left out (docs/paper.md).

Measured in RESULTS.md: 32 bits, seeds 0 to 2, --config.base.num_epochs=30.
Hardware: one core of a CPU for each run.
Time: not recorded, the machine also did other work.
Score: mAP .6222, with MCH .6461; chance .384.
"""

from configs import coco18_dch, methods


def get_config():
    config = methods.orthohash(coco18_dch.get_config())
    config.objective.threshold = 0.2
    config.base.label_weight = 0.02
    return config
