"""LSH on coco18, 9,600 MS-COCO photos with 18 labels, for a CPU.

python -m mch_jax.main --config=configs/coco18_lsh.py --config.dataset.root=DIR

The settings of coco18_dch.py with the changes of methods.py.

Measured in the grid of RESULTS.md: 32 bits, seeds 0 to 2, --config.base.num_epochs=30.
Hardware: one core of a CPU for each run.
Time: not recorded for one run; 38 runs of the grid took 77 minutes, two at a time.
Score: mAP .4033 ± .0036, without an agent; mean and 95 % interval, chance .384.
"""

from configs import coco18_dch, methods


def get_config():
    return methods.lsh(coco18_dch.get_config())
