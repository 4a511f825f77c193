"""Writes the shards of an index, or serves them on Ray: python -m mch_jax.cluster."""

from mch_jax.cluster.sharded import define_flags, main
from mch_jax.main import run_command

if __name__ == "__main__":
    define_flags()
    run_command(main)
