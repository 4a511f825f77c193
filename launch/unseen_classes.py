"""DCH on coco18 with a third of the classes hidden from training (docs/rivals.md).

    python -m mch_jax.main --config=launch/unseen_classes.py --config.dataset.root=DIR
    python -m mch_jax.rivals --run=RUN --classes=car,bus,boat,stop_sign,bird,horse

Every third class of labels.csv is hidden. The photos that have one of them leave the training set
and stay in the database.
"""

from typing import Any

from configs import coco18_dch

HIDDEN = ("car", "bus", "boat", "stop_sign", "bird", "horse")


def get_config():
    """Returns the config."""
    config: Any = coco18_dch.get_config()
    config.base.num_epochs = 30
    config.dataset.settings.hidden_classes = HIDDEN
    return config
