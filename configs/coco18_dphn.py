"""DPHN on coco18, 9,600 MS-COCO photos with 18 labels, for a CPU.

python -m mch_jax.main --config=configs/coco18_dphn.py --config.dataset.root=DIR

The settings of coco18_dch.py with the changes of methods.py.

Measured in RESULTS.md: 32 bits, seed 0, --config.base.num_epochs=30.
Hardware: one core of a CPU.
Time: not recorded, the machine also did other work.
Score: mAP .6060, with MCH .6235; chance .384.
"""

from configs import coco18_dch, methods


def get_config():
    return methods.dphn(coco18_dch.get_config())
