"""Encodes one's own photos with a run's encoder.

python -m mch_jax.export --run=DIR --images=FOLDER --out=codes.npz
python -m mch_jax.export --run=DIR --images=photos.tar --out=SHARDS --shard_size=1000

The photos are those of a folder, of tars, or of a list of paths. What a killed export has finished
is kept: give the same arguments again. Damaged photos are listed beside the codes and left out.
"""

import shutil
import time
from pathlib import Path

from absl import flags, logging

from mch_jax.main import keep_compiled, run_command

_RUN = flags.DEFINE_string("run", None, "Workdir of a finished run.")
_IMAGES = flags.DEFINE_string(
    "images", None, "A folder of photos or tars, a .tar, or a text file with a path a line."
)
_OUT = flags.DEFINE_string(
    "out", None, "A codes file that ends in .npz; else a directory, which gets one codes file a "
    "shard.",
)  # fmt: skip
_ENGINE = flags.DEFINE_enum("engine", "local", ("local", "ray"), "Where to encode.")
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Threads that decode (local) or actors (ray); as many as there are cores or "
    "accelerators by default.", lower_bound=1,
)  # fmt: skip
_SHARD_SIZE = flags.DEFINE_integer(
    "shard_size", 4096, "Photos a shard: what is lost at most when killed.", lower_bound=1
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 64, "Photos that the network sees at once.", lower_bound=1
)


def main(_: list[str]) -> None:
    """Encodes the photos and says how many."""
    for flag, what in ((_RUN, "the workdir of a finished run"), (_IMAGES, "a folder of photos"),
                       (_OUT, "a codes file to write, such as codes.npz")):  # fmt: skip
        if not flag.value:
            raise ValueError(f"--{flag.name} is missing; expected {what}")
    from mch_jax import bulk  # JAX takes a second, which a wrong argument need not wait for
    from mch_jax.data import places

    keep_compiled()
    begin, out = time.monotonic(), Path(_OUT.value)
    is_file = out.suffix == ".npz"
    if out.is_dir() if is_file else out.is_file():
        raise ValueError(
            f"--out={out} is a {'directory' if is_file else 'file'}; expected a name that ends in "
            ".npz for one file, another name for a directory of shards"
        )
    directory = out.with_name(out.name + ".parts") if is_file else out
    found = places.find(_IMAGES.value)
    plan = bulk.make_plan(Path(_RUN.value), found, directory, _SHARD_SIZE.value, _BATCH_SIZE.value)
    old = len(plan.shards) - len(plan.pending())
    if old:
        logging.info("%d of %d shards are there already", old, len(plan.shards))
    bulk.ENGINES[_ENGINE.value](plan, _WORKERS.value)
    damaged = bulk.read_damaged(plan)
    if len(damaged) == len(found):
        shutil.rmtree(directory)
        raise ValueError(
            f"--images={_IMAGES.value}: none of {len(found):,} photos can be read, first: "
            f"{damaged[0]['reason']}"
        )
    if is_file:
        bulk.merge(plan, out)
        shutil.rmtree(directory)
    print(  # noqa: T201
        f"{len(found) - len(damaged):,} photos encoded, {len(damaged):,} damaged, "
        f"{time.monotonic() - begin:.0f} s: {out}"
    )
    for entry in damaged[:10]:
        logging.warning("left out: %s", entry["reason"])


if __name__ == "__main__":
    run_command(main)
