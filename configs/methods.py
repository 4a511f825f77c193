"""What each method changes in the DCH config of a data set, which says everything else.

Rates, batches and epochs of end-to-end training are those of each method's authors, where their
loss is ours; the sources are named beside them. On fixed convolutions the data set's own stay.
"""

from ml_collections import ConfigDict


def _changed(config: ConfigDict, method: str, **base: object) -> ConfigDict:
    """Returns the config with another method and, where it trains end to end, changes in base."""
    config = ConfigDict(config)
    config.method = method
    if config.base.train_conv:
        config.base.update(base)
    return config


def _closed_form(config: ConfigDict, method: str) -> ConfigDict:
    config = _changed(config, method)
    if not config.base.train_conv:
        config.model.hidden = 0  # fc6 and fc7 would be random: the convolutions' own features
    return config


def lsh(config: ConfigDict) -> ConfigDict:
    """Random projections; nothing is learned."""
    return _closed_form(config, "lsh")


def itq(config: ConfigDict) -> ConfigDict:
    """Principal components, rotated; 50 turns, as the authors."""
    return _closed_form(config, "itq")


def ksh(config: ConfigDict) -> ConfigDict:
    """300 anchors and 2,000 labelled photos, as the authors."""
    return _closed_form(config, "ksh")


def hashnet(config: ConfigDict) -> ConfigDict:
    """With AlexNet on MS-COCO a re-implementation in Paddle reports these and mAP@5000 .734."""
    return _changed(config, "hashnet", num_epochs=150, batch_size=64, learning_rate=1e-3)


def adsh(config: ConfigDict) -> ConfigDict:
    """50 turns of 3 epochs over 2,000 photos, all layers at one rate, as the authors."""
    return _changed(config, "adsh", num_epochs=30, batch_size=64, learning_rate=1e-4, hash_rate=1.0)


def mmhh(config: ConfigDict) -> ConfigDict:
    """The authors' rate and batch, for another loss than the printed one, and more epochs."""
    return _changed(config, "mmhh", num_epochs=30, batch_size=48, learning_rate=1e-4)
