"""Finds near-duplicates among photos, without labels and without training.

python -m mch_jax.dedup --images=FOLDER --out=DIR
python -m mch_jax.dedup --images=FOLDER --out=DIR --run=runs/demo --threshold=2

DIR/groups.csv lists the photos of each group, DIR/index.html shows them to choose from. No photo is
changed or deleted. Rerun the same command to resume, or after photos were added or removed.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from mch_jax import command


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    flags.DEFINE_string(
        "images", None, "A folder of photos or tars, a .tar, or a text file of one path per line.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string("out", None, "Directory to write.", flag_values=values)
    flags.DEFINE_string(
        "run", None, "Workdir of a finished run whose encoder makes the codes, instead of "
        "perceptual codes.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "threshold", None, "Largest distance in bits between codes of near-duplicates; by default "
        "12 of 64, and an eighth of an encoder's bits.", lower_bound=0, flag_values=values,
    )  # fmt: skip
    command.define_backbone(values)
    flags.DEFINE_bool(
        "verify", True, "Compare the pixels of photos with near codes too.", flag_values=values
    )
    flags.DEFINE_bool(
        "mirrored", False, "Find photos with left and right exchanged too.", flag_values=values
    )
    flags.DEFINE_enum(
        "on_damaged", "skip", ["refuse", "skip"], "What to do about damaged photos.",
        flag_values=values,
    )  # fmt: skip


def _check_place(out: Path, images: Path, folder: str) -> None:
    """Raises ValueError unless the directory is new or of an earlier call, outside the photos."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file; expected a directory to write")
    if images.is_dir() and out.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"--out={out} is inside --images={images}; expected a directory elsewhere, so that its "
            "thumbnails are not taken for photos"
        )
    if out.is_dir() and not (out / folder).is_dir() and any(out.iterdir()):
        raise ValueError(f"--out={out} is not empty and holds no groups; choose another directory")


def main(arguments: Sequence[str]) -> None:
    """Writes the groups of near-duplicates and prints their number."""
    options = command.parse(arguments, define_flags, __doc__)
    command.require(options, images="a folder of photos", out="a directory to write")
    if options.run and options.mirrored:
        raise ValueError("--mirrored needs perceptual codes; leave out --run or --mirrored")
    begin, out = time.monotonic(), Path(options.out)
    from mch_jax.data import sources
    from mch_jax.duplicates import fingerprints, page, pairs
    from mch_jax.files import locks, remove_temporary, whole_file

    _check_place(out, Path(options.images), fingerprints.FOLDER)
    found = sources.find(options.images)
    if options.run:
        maker = fingerprints.encoder_codes(Path(options.run), options.backbone)
    else:
        maker = fingerprints.perceptual_codes()
    default = 12 if not options.run else maker.num_bits // 8
    threshold = default if options.threshold is None else options.threshold
    if threshold >= maker.num_bits:
        raise ValueError(
            f"--threshold={threshold}, expected less than the {maker.num_bits} bits of a code"
        )
    command.keep_compiled()
    kept = out / fingerprints.FOLDER
    kept.mkdir(parents=True, exist_ok=True)
    with locks.held(out / ".lock", f"--out={out}", "wait for it, or choose another directory"):
        for place in (out, kept):
            remove_temporary(place)
        prints = fingerprints.make(found, kept, maker)
        if not options.run and not options.mirrored:
            prints = fingerprints.without_mirrored(prints)
        damaged = prints.damaged
        reason = next(iter(damaged.values()), "")
        if len(damaged) == len(found):
            raise ValueError(
                f"--images={options.images}: none of {len(found):,} photos can be read, first: "
                f"{reason}"
            )
        if damaged and options.on_damaged == "refuse":
            raise ValueError(
                f"--images={options.images}: {len(damaged)} of {len(found)} photos are damaged, "
                f"first: {reason}; repair or remove them, or set --on_damaged=skip"
            )
        photos = [found[row] for row in prints.row]
        groups = pairs.groups_of(prints, maker, threshold, options.verify)
        pairs.write_csv(out / "groups.csv", groups, [photo.id for photo in photos])
        page.write(out, groups, photos, prints.sizes, len(damaged))
        with whole_file(out / "damaged.jsonl") as temporary:
            lines = [{"id": found[row].id, "reason": text} for row, text in damaged.items()]
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if not damaged:
            (out / "damaged.jsonl").unlink()
    command.show(
        f"{len(photos):,} photos, {len(groups):,} groups of {sum(map(len, groups)):,} "
        f"near-duplicates, {len(damaged):,} damaged, {time.monotonic() - begin:.0f} s: "
        f"{out / 'index.html'}"
    )
    for text in list(damaged.values())[:10]:
        logging.warning("left out: %s", text)


if __name__ == "__main__":
    command.run(main)
