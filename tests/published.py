"""Small archives in the format of the published data sets."""

import io
import json
import pathlib
import zipfile
from typing import Any

import numpy as np
from PIL import Image

# COCO's ids, which are not in alphabetical order.
CATEGORIES = {1: "person", 2: "bicycle", 17: "cat", 18: "dog"}
ALPHABETICAL = ["bicycle", "cat", "dog", "person"]
CONCEPTS = ["animal", "beach", "clouds", "sky", "zebra"]
PER_PART = 16


def photo(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    file = io.BytesIO()
    small.resize((40, 30), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def write_zip(path: pathlib.Path, members: dict[str, bytes], **options) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def write_coco(root: pathlib.Path) -> dict[str, set[str]]:
    """Writes COCO. The categories of photo i of a part are the four lowest bits of i.

    Returns:
      The categories of each photo by its name.
    """
    annotations, truth = {}, {}
    for first, part in ((0, "train2014"), (100, "val2014")):
        images, objects, photos = [], [], {}
        for i in range(PER_PART):
            number, name = first + i, f"COCO_{part}_{first + i:012d}.jpg"
            images.append({"id": number, "file_name": name})
            present = [key for bit, key in enumerate(CATEGORIES) if i >> bit & 1]
            # Two objects of the same category give one label.
            objects += [{"image_id": number, "category_id": key} for key in present * 2]
            truth[f"{part}/{name}"] = {CATEGORIES[key] for key in present}
            photos[f"{part}/{name}"] = photo(number)
        write_zip(root / f"{part}.zip", photos)  # not compressed, like the published archives
        categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
        annotations[f"annotations/instances_{part}.json"] = json.dumps(
            {"images": images, "annotations": objects, "categories": categories}
        ).encode()
    write_zip(root / "annotations_trainval2014.zip", annotations, compression=zipfile.ZIP_DEFLATED)
    return truth


def nuswide_names() -> list[str]:
    folders = ("actor", "sky")
    return [f"{folders[i % 2]}/{i:04d}_{700 + i}.jpg" for i in range(2 * PER_PART)]


def write_nuswide(root: pathlib.Path) -> None:
    """Writes NUS-WIDE. The concepts of photo i are the bits of i, and zebra if all bits are set."""
    names = nuswide_names()
    bits = np.array([[i >> bit & 1 for bit in range(4)] for i in range(len(names))])
    labels = {concept: bits[:, bit] for bit, concept in enumerate(CONCEPTS[:4])}
    labels["sky"] = labels["sky"] | labels["clouds"]  # the most frequent concept
    labels["zebra"] = bits.all(1).astype(int)
    lines = "\r\n".join(name.replace("/", "\\") for name in names)
    write_zip(root / "ImageList.zip", {"ImageList/Imagelist.txt": lines.encode()})
    files = {"ConceptsList/Concepts81.txt": "\n".join(CONCEPTS).encode()}
    for concept, values in labels.items():
        text = "".join(f"{value}\r\n" for value in values)
        files[f"Groundtruth/AllLabels/Labels_{concept}.txt"] = text.encode()
    write_zip(root / "NUS-WIDE.zip", files, compression=zipfile.ZIP_DEFLATED)
    for i, name in enumerate(names):
        path = root / "Flickr" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(i))


def write_mirflickr(root: pathlib.Path) -> None:
    """Writes MIRFLICKR. The concepts of photo i are the four lowest bits of i.

    Every second photo of a concept also has its stricter label.
    """
    from mch_jax.data import literature

    photos = {f"mirflickr/im{i}.jpg": photo(i) for i in range(1, 2 * PER_PART + 1)}
    photos["mirflickr/doc/readme.txt"] = b"about"
    write_zip(root / "mirflickr25k.zip", photos)
    files = {"README.txt": b"v080"}
    concepts = literature._CONCEPTS
    for column, concept in enumerate(concepts):
        found = [i for i in range(1, 2 * PER_PART + 1) if column < 4 and i >> column & 1]
        files[f"{concept}.txt"] = "".join(f"{i}\r\n" for i in found).encode()
        if concept in literature._STRICT:
            files[f"{concept}_r1.txt"] = "".join(f"{i}\n" for i in found[::2]).encode()
    write_zip(root / "mirflickr25k_annotations_v080.zip", files)


WRITERS = {"coco": write_coco, "nuswide": write_nuswide, "mirflickr": write_mirflickr}

# Settings for the small number of photos.
SETTINGS: Any = {
    "coco": {"num_query": 5, "num_train": 16},
    "nuswide": {"num_concepts": 4, "query_per_class": 1, "train_per_class": 4},
    "mirflickr": {"num_query": 5, "num_train": 16, "num_photos": 2 * PER_PART},
}
