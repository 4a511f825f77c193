"""DCH on coco18, 9,600 MS-COCO photos with 18 labels, for a CPU.

python -m mch_jax.main --config=configs/coco18_dch.py --config.dataset.root=DIR

The agent learns from cross-fitted base models (docs/agent.md).

Measured with 32 bits, seeds 0 to 4 (RESULTS.md, which also has 16 and 64 bits at 30 epochs).
Hardware: one core of a CPU for each run.
Time: not recorded.
Score: mAP of seed 0 .6275, with MCH .6404; MCH minus base +.0160 ± .0023 (95 % interval, paired by
seed), chance .384.
"""

from ml_collections.config_dict import placeholder

from configs import cpu


def get_config():
    config = cpu.get_config()
    config.dataset.name = "coco18"
    config.dataset.settings.num_train = placeholder(int)  # fewer training photos than all 3,600
    config.base.num_epochs = 60
    config.base.label_weight = 0.2
    config.agent.recipe = "cross_fit"
    config.agent.recall_weight = 0.3
    config.agent.calibrate = True
    config.agent.optimizer = "adam"
    config.agent.learning_rate = 2e-3
    config.agent.weight_decay = 1e-2
    config.agent.batch_size = 2048
    config.agent.num_steps = 600
    config.agent.widths = (128, 64)
    config.agent.dropout = 0.5
    config.agent.entropy_weight = 0.05
    return config
