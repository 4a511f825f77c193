"""Former name of `mch_jax.training.features_file`."""

from mch_jax.training.features_file import *  # noqa: F403
