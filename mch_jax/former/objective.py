"""Former name of `mch_jax.methods.base`."""

from mch_jax.methods.base import *  # noqa: F403
