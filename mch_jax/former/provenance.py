"""Former name of `mch_jax.evaluation.provenance`."""

from mch_jax.evaluation.provenance import *  # noqa: F403
