"""Encodes photos of one's own with the encoder of a run.

python -m mch_jax.export --run=DIR --images=FOLDER --out=codes.npz
python -m mch_jax.export --run=DIR --images=photos.tar --out=SHARDS --shard_size=1000
python -m mch_jax.export --run=DIR --program=encoder.stablehlo

The photos come from a folder, from tars, or from a list of paths. Rerun the same command to resume
an export that was stopped. Damaged photos are left out and listed beside the codes. --program
writes the encoder itself, as a program that JAX runs without this package.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from mch_jax import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string("run", None, "Workdir of a finished run.", flag_values=values)
    flags.DEFINE_string(
        "images", None, "A folder of photos or tars, a .tar, or a text file of one path per line.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "out", None, "A codes file, which ends in .npz, or a directory for one codes file per "
        "shard.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "program", None, "A file that ends in .stablehlo, for the encoder as a program; in place "
        "of --images and --out.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum("engine", "local", ("local", "ray"), "Where to encode.", flag_values=values)
    flags.DEFINE_integer(
        "workers", None, "Number of threads that decode (local) or of actors (ray); by default one "
        "per core or per accelerator.", lower_bound=1, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "shard_size", 4096, "Photos per shard; finished shards are kept when the export stops.",
        lower_bound=1, flag_values=values,
    )  # fmt: skip
    command.define_backbone(values)
    flags.DEFINE_integer(
        "batch_size", 64, "Photos per batch of the network.", lower_bound=1, flag_values=values
    )


def main(arguments: Sequence[str]) -> None:
    """Encodes the photos and prints their number, or writes the encoder as a program."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(options, run="the workdir of a finished run")
    if options.program:
        if options.images or options.out:
            raise ValueError("expected --program, or --images and --out, not both; remove one")
        from mch_jax import program

        program.save(options.run, options.program)
        command.show(f"program written: {options.program}")
        return
    if not options.images and not options.out:
        raise ValueError("expected --images and --out, or --program; add them")
    command.require(
        options,
        images="a folder of photos",
        out="a codes file to write, such as codes.npz",
    )
    begin, out = time.monotonic(), Path(options.out)
    is_file = out.suffix == ".npz"
    if out.is_dir() if is_file else out.is_file():
        raise ValueError(
            f"--out={out} is a {'directory' if is_file else 'file'}; expected a name that ends in "
            ".npz for one file, another name for a directory of shards"
        )
    from mch_jax import bulk
    from mch_jax.data import sources

    command.keep_compiled()
    directory = out.with_name(out.name + ".parts") if is_file else out
    found = sources.find(options.images)
    plan = bulk.make_plan(
        Path(options.run), found, directory, options.shard_size, options.batch_size,
        options.backbone,
    )  # fmt: skip
    num_done = len(plan.shards) - len(plan.pending())
    if num_done:
        logging.info("%d of %d shards were encoded before", num_done, len(plan.shards))
    bulk.ENGINES[options.engine](plan, options.workers)
    damaged = bulk.read_damaged(plan)
    if len(damaged) == len(found):
        shutil.rmtree(directory)
        raise ValueError(
            f"--images={options.images}: none of {len(found):,} photos can be read, first: "
            f"{damaged[0]['reason']}"
        )
    if is_file:
        bulk.merge(plan, out)
        shutil.rmtree(directory)
    command.show(
        f"{len(found) - len(damaged):,} photos encoded, {len(damaged):,} damaged, "
        f"{time.monotonic() - begin:.0f} s: {out}"
    )
    for entry in damaged[:10]:
        logging.warning("left out: %s", entry["reason"])


if __name__ == "__main__":
    command.run(main)
