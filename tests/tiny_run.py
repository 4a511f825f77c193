"""A config whose whole run takes seconds, for tests that need a run."""

import json
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import default

FILES = ("query.npz", "database.npz", "train.npz", "regions.npz")


def shrunk(config):
    """Returns a config with the small sizes of the tests, which share compiled programs."""
    config.num_bits = 12
    config.dataset.image_size = 64
    config.model.update(input_size=63, width=1 / 16, hidden=16, num_anchors=10)
    config.base.update(num_epochs=3, batch_size=8, num_views=2)
    config.base.update(crop_fraction=0.5, adsh_sample=16, adsh_epochs=1)
    config.agent.update(num_steps=6, batch_size=8, widths=(16, 8, 8, 4))
    config.encode.update(batch_size=16, keep_threshold=0.45)
    config.evaluate.bucket_k = (1, 5, 20)
    return config


def tiny(method="dch", **changes):
    config: Any = shrunk(default.get_config())
    config.method = method
    config.dataset.settings = {"size": 64, "num_train": 40, "num_database": 24, "num_query": 8}
    config.base.train_conv = False
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return config


def of_folder(root, **changes):
    """Returns the config of a run on the photos of a folder, of which there may be ten."""
    config = tiny(**changes)
    config.dataset.update(name="folder", root=str(root))
    config.dataset.settings = {}
    config.base.update(batch_size=2)
    config.agent.update(batch_size=4)
    config.evaluate.bucket_k = (1, 2)
    return config


def changed(**fields):
    """Returns the default config with fields set to any value, such as `base__batch_size`."""
    config = default.get_config().to_dict()
    for name, value in fields.items():
        *parents, last = name.split("__")
        node = config
        for parent in parents:
            node = node[parent]
        node[last] = value
    return ConfigDict(config)


get_config = tiny  # for --config=tests/tiny_run.py


def read(workdir):
    """Returns results.json and the codes of a run."""
    codes = {}
    for name in FILES:
        with np.load(workdir / "codes" / name, allow_pickle=False) as archive:
            codes |= {f"{name}/{key}": archive[key] for key in archive.files}
    return json.loads((workdir / "results.json").read_text()), codes


def assert_same(a, b):
    """Asserts that two results of `read` are equal bit for bit."""
    assert a[0] == b[0]
    for name, array in a[1].items():
        np.testing.assert_array_equal(array, b[1][name], name)
