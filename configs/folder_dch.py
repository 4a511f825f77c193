"""DCH on a folder of your own photos, for a CPU.

python -m mch_jax.main --config=configs/folder_dch.py --config.dataset.root=DIR

The settings of coco18_dch.py; photos that cannot be decoded are skipped.

Not run.
"""

from configs import coco18_dch


def get_config():
    config = coco18_dch.get_config()
    config.dataset.name = "folder"
    del config.dataset.settings["num_train"]  # the reader of folders has no such setting
    config.dataset.on_damaged = "skip"
    return config
