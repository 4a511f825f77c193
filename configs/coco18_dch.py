"""DCH on coco18, 9,600 MS-COCO photos with 18 labels, for a CPU.

python -m mch_jax.main --config=configs/coco18_dch.py --config.dataset.root=DIR

The convolutions are ImageNet's and fixed; fc6 and fc7 are small and learned from nothing.
"""

from configs import scenes_dch


def get_config():
    config = scenes_dch.get_config()
    config.dataset.name = "coco18"
    config.dataset.image_size = 256
    config.model.input_size = 224
    config.base.num_epochs = 60
    config.base.label_weight = 0.2
    config.agent.recipe = "cross_fit"
    config.agent.recall_weight = 0.3
    config.agent.optimizer = "adam"
    config.agent.learning_rate = 2e-3
    config.agent.weight_decay = 1e-2
    config.agent.batch_size = 2048
    config.agent.num_steps = 600
    config.agent.widths = (128, 64)
    config.agent.dropout = 0.5
    config.agent.entropy_weight = 0.05
    return config
