"""A folder of ten photos with two classes, for tests of data sets."""

import io
import pathlib

import numpy as np
from PIL import Image

NAMES = [f"{i}.jpg" for i in range(10)]
SPLITS = ["query"] * 2 + ["train"] * 5 + ["database"] * 3


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rows(*names: str) -> list[list[str]]:
    """Returns rows of a table. The labels of photo i are the two lowest bits of i + 1."""
    return [[name, str(i & 1), str(i >> 1 & 1)] for i, name in enumerate(names, 1)]


def write_photos(root: pathlib.Path, names=NAMES) -> None:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture(i)))


def write_table(root: pathlib.Path, table, header=("file", "split", "cat", "dog")) -> None:
    lines = [",".join(header), *(",".join(row) for row in table)]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


def write_lists(root: pathlib.Path, prefix: str = "", **changed: list[str]) -> None:
    lines = [f"{prefix}{name} {first} {second}" for name, first, second in rows(*NAMES)]
    lists = {"query": lines[:2], "database": lines[2:], "train": lines[2:7]} | changed
    for name, content in lists.items():
        (root / f"{name}.txt").write_text("\n".join(content) + "\n")


def make(root: pathlib.Path) -> pathlib.Path:
    """Writes ten photos and labels.csv."""
    write_photos(root)
    write_table(root, [[r[0], s, *r[1:]] for r, s in zip(rows(*NAMES), SPLITS, strict=True)])
    return root
