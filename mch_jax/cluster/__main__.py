"""Writes an index as shards, or serves its shards on a Ray cluster.

python -m mch_jax.cluster --index=DIR --codes=RUN/codes/database.npz --shards=4
python -m mch_jax.cluster --index=DIR --replicas=2

The first form writes the shards; the second starts their replicas and waits until all answer.
"""

from collections.abc import Sequence

from absl import flags

from mch_jax import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "index", None, "Directory of the shards, on storage that all nodes see.", flag_values=values
    )
    flags.DEFINE_string("codes", None, "A codes file to write as shards.", flag_values=values)
    flags.DEFINE_integer(
        "shards", 4, "Number of shards to write.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "replicas", 2, "Number of nodes that serve each shard.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string("address", "auto", "Address of the Ray cluster.", flag_values=values)


def main(arguments: Sequence[str]) -> None:
    """Writes the shards, or starts their replicas and waits until all of them answer."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(options, index="the directory of the shards")
    from mch_jax import cluster
    from mch_jax.files import codes_file

    if options.codes:
        file = codes_file.load(options.codes)
        shards = cluster.Shards.build(
            file.codes, file.item, file.num_bits, options.index, options.shards
        )
        command.show(f"{len(file.codes):,} codes in {shards.num_shards} shards")
        return
    index = cluster.connect(options.index, options.replicas, options.address)
    index.wait()
    command.show(f"{len(index):,} items, {index.num_codes:,} codes served")


if __name__ == "__main__":
    command.run(main)
