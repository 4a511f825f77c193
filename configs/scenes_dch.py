"""DCH on the built-in scenes: the demo, for a CPU.

python -m mch_jax.main --config=configs/scenes_dch.py

Measured by launch/demo.sh: 32 bits, seed 0 (README.md).
Hardware: two cores of a CPU.
Time: four minutes.
Score: mAP .537, with MCH .628; one seed, chance .259.
"""

from configs import cpu


def get_config():
    config = cpu.get_config()
    config.dataset.name = "scenes"
    config.dataset.image_size = 128
    config.model.input_size = 128
    config.base.num_epochs = 40
    config.agent.learning_rate = 1e-2
    config.agent.num_steps = 300
    return config
