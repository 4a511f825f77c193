"""DCH on the built-in scenes: the demo, for a CPU.

python -m mch_jax.main --config=configs/scenes_dch.py
"""

from configs import default


def get_config():
    config = default.get_config()
    config.dataset.name = "scenes"
    config.dataset.image_size = 128
    config.model.weights = "lpips"
    config.model.input_size = 128
    config.model.hidden = 1024
    config.base.train_conv = False
    config.base.optimizer = "adam"
    config.base.learning_rate = 3e-4
    config.base.hash_rate = 1.0
    config.base.weight_decay = 0.05
    config.base.crop_fraction = 0.5
    config.base.num_epochs = 40
    config.agent.gradient = "exact"
    config.agent.learning_rate = 1e-2
    config.agent.num_steps = 300
    return config
