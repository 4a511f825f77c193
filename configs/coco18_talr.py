"""TALR on coco18, 9,600 MS-COCO photos with 18 labels, for a CPU.

python -m mch_jax.main --config=configs/coco18_talr.py --config.dataset.root=DIR

The settings of coco18_dch.py with the changes of methods.py.

Measured in RESULTS.md: 32 bits, seeds 0 to 2, --config.base.num_epochs=30.
Hardware: one core of a CPU for each run.
Time: not recorded, the machine also did other work.
Score: mAP .6521, with MCH .6579; chance .384.
"""

from configs import coco18_dch, methods


def get_config():
    return methods.talr(coco18_dch.get_config())
