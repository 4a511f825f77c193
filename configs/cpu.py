"""The settings that the configs for a CPU share.

The convolutions are ImageNet's and stay fixed; their features are computed once. Small fc6, fc7 and
hash layers are trained on them with Adam, and the agent with the exact gradient.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.model.weights = "lpips"
    config.model.hidden = 1024
    config.base.train_conv = False
    config.base.optimizer = "adam"
    config.base.learning_rate = 3e-4
    config.base.hash_rate = 1.0
    config.base.weight_decay = 0.05
    config.base.crop_fraction = 0.5
    config.agent.gradient = "exact"
    return config
