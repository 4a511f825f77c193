"""Measures how many altered copies `mch_jax.dedup` finds, and how many false pairs.

python launch/dedup_recall.py --images=FOLDER --work=DIR [--count=1000 --seed=0 --peer=PYTHON]

Draws photos, writes an altered copy of each, and looks for near-duplicates in the photos together
with the copies of one kind. A copy is found if it is in the group of its photo. A false pair is two
photos of which anything is in one group. --peer is the interpreter of an environment with the
package imagededup, which is measured on the same folders, in turn with this package.

Prints a table in Markdown and writes DIR/results.json. Nothing is read from the network.
"""

import argparse
import io
import itertools
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mch_jax import components
from mch_jax.data import photos, sources
from mch_jax.duplicates import fingerprints, pairs

Alteration = Callable[[Image.Image, np.random.Generator], Image.Image]
COPY = "~copy"  # before the suffix of an altered copy

PEER = """
import json, sys, time, logging, warnings
warnings.simplefilter("ignore")
method, folder, threshold = sys.argv[1:]
from imagededup import methods
coder = getattr(methods, method)(verbose=False)
least = {"min_similarity_threshold": float(threshold)}
most = {"max_distance_threshold": round(float(threshold))}
begin = time.monotonic()
found = coder.find_duplicates(image_dir=folder, **(least if method == "CNN" else most))
print(json.dumps({"seconds": time.monotonic() - begin, "found": found}))
"""


def halved(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Returns an image of half the width and height."""
    size = image.width // 2, image.height // 2
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns a crop of 90 % of the width and height, at a random place."""
    width, height = round(image.width * 0.9), round(image.height * 0.9)
    left = int(rng.integers(0, image.width - width + 1))
    top = int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns an image turned by 5 degrees to either side, with black corners."""
    return image.rotate(5 if rng.random() < 0.5 else -5, Image.Resampling.BICUBIC)


def turned_and_cropped(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Returns an image turned by 5 degrees, without the corners that lie outside."""
    image = turned(image, rng)
    sine, cosine = np.sin(np.deg2rad(5)), np.cos(np.deg2rad(5))
    long, short = max(image.size), min(image.size)
    scale = min(short / (long * sine + short * cosine), long / (long * cosine + short * sine))
    x, y = (side * (1 - scale) / 2 for side in image.size)
    return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))


def overlaid(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Returns an image with a line of white text with a black border, an eighth of its height."""
    image = image.copy()
    font = ImageFont.load_default(max(10, image.height // 8))
    place = image.width * 0.05, image.height * 0.75
    ImageDraw.Draw(image).text(
        place, "SAMPLE TEXT 2024", "white", font, stroke_width=2, stroke_fill="black"
    )
    return image


def mirrored(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Returns an image with left and right exchanged."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


ALTERATIONS: dict[str, tuple[str, int, Alteration]] = {  # what it is, JPEG quality, function
    "jpeg": ("JPEG quality 30", 30, lambda image, _: image),
    "half": ("half the size", 95, halved),
    "crop": ("90 % crop", 95, cropped),
    "turn": ("5° rotation, black corners", 95, turned),
    "turn_crop": ("5° rotation, corners cropped", 95, turned_and_cropped),
    "text": ("text overlay", 95, overlaid),
    "flip": ("horizontal flip", 95, mirrored),
}


def write_folders(found: list[sources.Photo], work: Path, seed: int) -> None:
    """Writes a folder of the photos, and one for each alteration with the copies beside them."""
    if (work / "done").exists():
        return
    for number, photo in enumerate(found):
        data = sources.content(photo)
        image = Image.fromarray(photos.decode(data, photo.id))
        rng = np.random.default_rng([seed, number])
        stem, suffix = f"{number:06d}", Path(photo.id).suffix.lower()
        original = work / "original" / f"{stem}{suffix}"
        original.parent.mkdir(parents=True, exist_ok=True)
        original.write_bytes(data)
        for name, (_, quality, alter) in ALTERATIONS.items():
            folder = work / name
            folder.mkdir(exist_ok=True)
            (folder / original.name).unlink(missing_ok=True)
            os.link(original, folder / original.name)
            stream = io.BytesIO()
            alter(image, rng).save(stream, "JPEG", quality=quality)
            (folder / f"{stem}{COPY}.jpg").write_bytes(stream.getvalue())
    (work / "done").touch()


def measure(found: Iterable[Iterable[str]], count: int) -> tuple[float, list[tuple[int, int]]]:
    """Returns the share of copies in the group of their photo, and the false pairs.

    Args:
      found: Names of the files of each group.
      count: Number of photos.
    """
    matched, false = 0, set()
    for group in found:
        rows: dict[int, int] = {}
        for name in group:
            number = int(Path(name).name[:6])
            rows[number] = rows.get(number, 0) + 1
        matched += sum(members > 1 for members in rows.values())
        false |= set(itertools.combinations(sorted(rows), 2))
    return matched / count, sorted(false)


def ours(folder: Path, threshold: int, verify: bool, with_mirrored: bool) -> tuple[list, float]:
    """Returns the groups of a folder, without those of an earlier call, and the seconds taken."""
    kept = folder.with_name(f"{folder.name}.fingerprints")
    if kept.exists():
        for path in kept.iterdir():
            path.unlink()
    kept.mkdir(exist_ok=True)
    begin, maker = time.monotonic(), fingerprints.perceptual_codes()
    found = sources.find(folder)
    prints = fingerprints.make(found, kept, maker)
    if not with_mirrored:
        prints = fingerprints.without_mirrored(prints)
    result = pairs.groups_of(prints, maker, threshold, verify)
    seconds = time.monotonic() - begin
    names = [found[row].id for row in prints.row]
    return [[names[member.row] for member in group] for group in result], seconds


def peer(
    python: str, method: str, folder: Path, threshold: float
) -> tuple[list[list[str]], float] | None:
    """Returns the groups of a folder and the seconds taken by imagededup; None if it fails."""
    command = [python, "-c", PEER, method, str(folder), str(threshold)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"imagededup {method}: {done.stderr.strip().splitlines()[-1][:200]}")
        return None
    answer = json.loads(done.stdout.splitlines()[-1])
    names = sorted(answer["found"])
    row = {name: number for number, name in enumerate(names)}
    found = [(row[a], row[b]) for a, others in answer["found"].items() for b in others]
    parts = components.connected(np.array(found, np.int64).reshape(-1, 2), len(names))
    return [[names[i] for i in part] for part in parts], answer["seconds"]


def main() -> None:
    """Writes the folders, measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="photos of the draw to leave out first")
    parser.add_argument("--threshold", type=int, default=12)
    parser.add_argument("--peer", help="interpreter with imagededup")
    parser.add_argument("--cnn", action="store_true", help="imagededup's CNN too")
    options = parser.parse_args()
    found = sources.find(options.images)
    order = np.random.default_rng(options.seed).permutation(len(found))
    order = order[options.skip :][: options.count]
    write_folders([found[i] for i in order], options.work, options.seed)
    rows: dict[str, Callable[[Path], tuple[list, float] | None]] = {
        "dedup": lambda folder: ours(folder, options.threshold, True, False),
        "dedup --mirrored": lambda folder: ours(folder, options.threshold, True, True),
        "dedup --noverify": lambda folder: ours(folder, options.threshold, False, False),
    }
    if options.peer:
        rows["PHash, 10 bits"] = lambda folder: peer(options.peer, "PHash", folder, 10)
        rows["PHash, 4 bits"] = lambda folder: peer(options.peer, "PHash", folder, 4)
    if options.peer and options.cnn:
        rows["CNN, .9"] = lambda folder: peer(options.peer, "CNN", folder, 0.9)
    results: dict[str, dict] = {name: {"recall": {}, "false": {}, "speed": []} for name in rows}
    ours(options.work / "original", options.threshold, True, False)  # compiles
    for name in ("original", *ALTERATIONS):
        folder = options.work / name
        for row, look in list(rows.items()):
            answer = look(folder)
            if answer is None:
                del rows[row], results[row]
                continue
            share, false = measure(answer[0], len(order))
            results[row]["recall"][name] = share
            results[row]["false"][name] = [[found[order[i]].id for i in pair] for pair in false]
            results[row]["speed"].append(len(list(folder.iterdir())) / answer[1])
            print(f"{name}: {row}: recall {share:.3f}, {len(false)} false pairs", flush=True)
    (options.work / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n| | {' | '.join(results)} |\n| --- |{' --- |' * len(results)}")
    for name, (title, _, _) in ALTERATIONS.items():
        cells = (f"{result['recall'][name]:.3f}" for result in results.values())
        print(f"| {title} | {' | '.join(cells)} |")
    worst = (str(max(map(len, result["false"].values()))) for result in results.values())
    print(f"| most false pairs in a folder | {' | '.join(worst)} |")
    alone = (str(len(result["false"]["original"])) for result in results.values())
    print(f"| pairs among the photos alone | {' | '.join(alone)} |")
    speed = (f"{statistics.median(result['speed']):,.0f}" for result in results.values())
    print(f"| photos per second | {' | '.join(speed)} |")


if __name__ == "__main__":
    main()
