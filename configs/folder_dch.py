"""DCH on a folder of your own photos, for a CPU.

python -m mch_jax.main --config=configs/folder_dch.py --config.dataset.root=DIR

The settings of coco18_dch.py, with smaller batches for small training sets. Photos that cannot be
decoded are skipped.

Not run.
"""

from configs import coco18_dch


def get_config():
    config = coco18_dch.get_config()
    config.dataset.name = "folder"
    del config.dataset.settings["num_train"]  # the reader of folders has no such setting
    config.dataset.on_damaged = "skip"
    config.base.batch_size = config.agent.batch_size = 0  # sizes that fit the training set
    return config
