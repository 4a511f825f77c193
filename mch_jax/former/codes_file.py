"""Former name of `mch_jax.files.codes_file`."""

from mch_jax.files.codes_file import *  # noqa: F403
