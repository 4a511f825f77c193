"""Measures `mch_jax.dedup` on many photos: time, memory, recall and false pairs.

python launch/dedup_many.py --images=FOLDER --work=DIR [--count=20000 --seed=0]

Fills a folder with the photos and with altered copies of them, one kind of dedup_recall.py after
the other, and runs the command on it in a new process. A copy is found if it is in the group of its
photo. A false pair is two photos of which anything is in one group.

Prints a table in Markdown and writes DIR/many.json. Nothing is read from the network.
"""

import argparse
import csv
import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from dedup_recall import ALTERATIONS
from PIL import Image

from mch_jax.data import photos, sources


def write_folder(found: list[sources.Photo], folder: Path, count: int, seed: int) -> None:
    """Writes photos and altered copies of them, `count` files in all.

    Args:
      found: The photos.
      folder: A folder that does not exist.
      count: Number of files, at least that of the photos.
      seed: Seed of the alterations.
    """
    unfinished = folder.with_name(f"{folder.name}.new")
    unfinished.mkdir(parents=True, exist_ok=True)
    kinds = list(ALTERATIONS)
    for number in range(count - len(found)):  # a photo's second copy is of another kind
        row, turn = number % len(found), number // len(found)
        kind = kinds[(row + turn) % len(kinds)]
        _, quality, alter = ALTERATIONS[kind]
        photo, rng = found[row], np.random.default_rng([seed, number])
        image = Image.fromarray(photos.decode(sources.content(photo), photo.id))
        alter(image, rng).save(unfinished / f"{row:06d}~{kind}.jpg", "JPEG", quality=quality)
    for row, photo in enumerate(found):
        (unfinished / f"{row:06d}.jpg").write_bytes(sources.content(photo))
    unfinished.rename(folder)


def read_groups(path: Path) -> list[list[str]]:
    """Returns the names of the files of each group."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    groups = itertools.groupby(rows, key=lambda row: row["group"])
    return [[row["file"] for row in members] for _, members in groups]


def recall(groups: list[list[str]], names: list[str]) -> dict[str, list[int]]:
    """Returns the number of copies found and of all copies, for each kind."""
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    found = {kind: [0, 0] for kind in ALTERATIONS}
    for name in names:
        number, _, kind = name.removesuffix(".jpg").partition("~")
        if kind:
            mine = group_of.get(name, -1)
            found[kind][0] += mine >= 0 and mine == group_of.get(f"{number}.jpg", -2)
            found[kind][1] += 1
    return found


def main() -> None:
    """Writes the folder, runs the command, and prints what it found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder, out = options.work / "photos", options.work / "groups"
    if not folder.exists():
        write_folder(sources.find(options.images), folder, options.count, options.seed)
    command = [sys.executable, "-m", "mch_jax.dedup", f"--images={folder}", f"--out={out}"]
    began = time.monotonic()
    _, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.executable, command), 0)
    seconds = time.monotonic() - began
    if status:
        sys.exit(f"dedup ended with status {os.waitstatus_to_exitcode(status)}")
    groups, names = read_groups(out / "groups.csv"), sorted(os.listdir(folder))
    photos_of = [sorted({name[:6] for name in group}) for group in groups]
    result = {
        "photos": len(names),
        "bytes": sum((folder / name).stat().st_size for name in names),
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": 1024 * usage.ru_maxrss,
        "groups": len(groups),
        "page_bytes": (out / "index.html").stat().st_size,
        "recall": recall(groups, names),
        "false": sorted({p for rows in photos_of for p in itertools.combinations(rows, 2)}),
    }
    (options.work / "many.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: result[name] for name in list(result)[:7]}, indent=2))
    print(f"{len(result['false'])} false pairs\n\n| copies | found | share |")
    print("| --- | ---: | ---: |")
    for kind, (found, total) in result["recall"].items():
        print(f"| {ALTERATIONS[kind][0]} | {found:,} of {total:,} | {found / total:.4f} |")


if __name__ == "__main__":
    main()
