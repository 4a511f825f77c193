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
    config.base.num_epochs = 30
    config.agent.num_steps = 300
    return config
