"""Addresses and checksums of the published archives, and a download that can be resumed.

Libraries such as pooch and TensorFlow Datasets check a file's checksum as well, but start an
interrupted download anew, which for COCO is up to 13 GB. `download` is therefore written here.
"""

import hashlib
import pathlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import logging

_BLOCK = 2**22


class Archive(NamedTuple):
    """A published archive.

    Attributes:
      name: Name of the file.
      url: Address of the file, or empty if its authors hand it out on request.
      size: Number of bytes, or 0 if unknown.
      algorithm: Algorithm of `checksum`, by its name in hashlib.
      checksum: Published checksum in hexadecimal, or empty if unknown.
    """

    name: str
    url: str = ""
    size: int = 0
    algorithm: str = "sha256"
    checksum: str = ""


_COCO = "http://images.cocodataset.org/"
_MIRFLICKR = "https://press.liacs.nl/mirflickr/mirflickr25k.v3b/"

# Sizes and SHA-256 of COCO are from the list of TensorFlow Datasets, the MD5 of MIRFLICKR is from
# its web page.
ARCHIVES: Mapping[str, Sequence[Archive]] = {
    "coco": (
        Archive(
            "train2014.zip",
            _COCO + "zips/train2014.zip",
            13510573713,
            "sha256",
            "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
        ),
        Archive(
            "val2014.zip",
            _COCO + "zips/val2014.zip",
            6645013297,
            "sha256",
            "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
        ),
        Archive(
            "annotations_trainval2014.zip",
            _COCO + "annotations/annotations_trainval2014.zip",
            252872794,
            "sha256",
            "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
        ),
    ),
    "nuswide": (
        Archive("NUS-WIDE.zip"),
        Archive("ImageList.zip"),
        Archive("Flickr.zip"),
    ),
    "mirflickr": (
        Archive(
            "mirflickr25k.zip",
            _MIRFLICKR + "mirflickr25k.zip",
            0,
            "md5",
            "a23d0a8564ee84cda5622a6c2f947785",
        ),
        Archive(
            "mirflickr25k_annotations_v080.zip", _MIRFLICKR + "mirflickr25k_annotations_v080.zip"
        ),
    ),
}

TERMS = {
    "coco": "Photos stay under Flickr's terms of use, annotations are CC BY 4.0.",
    "nuswide": (
        "The authors give out the photos after a signed agreement; lists and labels are on the "
        "same page, NUS-WIDE at lms.comp.nus.edu.sg."
    ),
    "mirflickr": "Photos have Creative Commons attribution licences, named in the archive.",
}


def check(path: pathlib.Path, archive: Archive) -> str:
    """Compares a file with the published size and checksum.

    Args:
      path: Path of the file.
      archive: The published archive.

    Returns:
      `right`, or `unknown` if no checksum is published.

    Raises:
      ValueError: The size or the checksum differs.
    """
    size = path.stat().st_size
    if archive.size and size != archive.size:
        raise ValueError(
            f"'{path}' has {size:,} bytes, expected {archive.size:,}; remove it and fetch it again"
        )
    if not archive.checksum:
        return "unknown"
    digest = hashlib.new(archive.algorithm)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != archive.checksum:
        raise ValueError(
            f"'{path}' has the {archive.algorithm} {digest.hexdigest()}, expected "
            f"{archive.checksum}; remove it and fetch it again"
        )
    return "right"


def download(archive: Archive, folder: pathlib.Path) -> pathlib.Path:
    """Downloads an archive to a folder, unless it is there, and returns its path.

    An interrupted download is kept in a file with the suffix .part, which the next call resumes.

    Args:
      archive: The archive.
      folder: The folder to download to.

    Raises:
      ValueError: The archive has no address, the download fails, or the checksum differs.
    """
    path = folder / archive.name
    if path.is_file():
        return path
    if not archive.url:
        raise ValueError(
            f"'{path}' does not exist and cannot be downloaded; docs/datasets.md says how to "
            "request it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={done}-"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            resumes = answer.status == 206  # otherwise the server sends the whole file
            logging.info(
                "%s: downloading %s from byte %d", path, archive.url, done if resumes else 0
            )
            with open(part, "ab" if resumes else "wb") as file:
                shutil.copyfileobj(answer, file, _BLOCK)
                missing = (
                    int(answer.headers.get("Content-Length") or 0)
                    + (done if resumes else 0)
                    - file.tell()
                )
            if missing > 0:
                raise OSError(f"cut off, {missing:,} bytes are missing")
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:  # 416: the .part file is complete
            raise ValueError(f"{archive.url} answers {error.code} {error.reason}") from error
    except (OSError, urllib.error.URLError) as error:
        raise ValueError(
            f"{archive.url} cannot be downloaded ({error}); run the command again to resume"
        ) from error
    check(part, archive)
    part.replace(path)
    return path
