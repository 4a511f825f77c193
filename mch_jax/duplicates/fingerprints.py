"""Fingerprints of photos: codes and a small grey copy of each, kept in files to resume.

A fingerprint depends on its photo and on the program that makes it, on nothing else. Those of
earlier calls are used again as long as the size and the times of the photo's file are the same, so
that a folder in which some photos were added or removed takes little time.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from mch_jax import batched, bulk, codes, perceptual
from mch_jax.data import photos, sources
from mch_jax.encoder import FILE, Encoder
from mch_jax.files import read_npz, schemas, whole_file
from mch_jax.machine import cores
from mch_jax.training import logs

SHARD_SIZE = 512  # photos whose fingerprints a killed call loses at most
FOLDER = "fingerprints"  # subfolder of the output
_BATCH = 64  # photos that an encoder is called with


class Fingerprints(NamedTuple):
    """The fingerprints of photos that can be read.

    Attributes:
      row: The position of each photo among all photos.
      codes: Codes of the whole photo, first, and of its views or regions. Equal codes may repeat.
      small: Grey photos, stretched to a square.
      sizes: Width and height of each photo in pixels.
      damaged: Why each of the other photos cannot be read, by position.
    """

    row: Int64[np.ndarray, " n"]
    codes: UInt8[np.ndarray, "n t bytes"]
    small: UInt8[np.ndarray, "n s s"]
    sizes: Int32[np.ndarray, "n 2"]
    damaged: dict[int, str]


def without_mirrored(found: Fingerprints) -> Fingerprints:
    """Returns perceptual fingerprints without the code of the mirrored view."""
    return found._replace(codes=found.codes[:, : len(perceptual.VIEWS) - 1])


class Maker(NamedTuple):
    """What makes codes of photos.

    Attributes:
      name: Changes with everything that the codes depend on, except the photos.
      num_bits: Length of a code.
      image_size: Side in pixels of the images that `codes` takes, or 0 if it takes none.
      codes: Returns the codes [n t bytes] of small grey photos, sizes, and images.
      starts: Returns for photos' sizes the maps [n t 2 3] from each view to the photo.
    """

    name: str
    num_bits: int
    image_size: int
    codes: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    starts: Callable[[np.ndarray], Float32[np.ndarray, "n t 2 3"]]


def perceptual_codes() -> Maker:
    """Returns the maker of perceptual codes, which need no training."""
    return Maker(
        "perceptual-1",
        perceptual.NUM_BITS,
        0,
        lambda small, sizes, _: perceptual.codes(small, sizes),
        perceptual.affines,
    )


def encoder_codes(run: Path, backbone: str | None = None) -> Maker:
    """Returns the maker of the codes that a run's encoder keeps.

    Args:
      run: Workdir of a finished run.
      backbone: The run's backbone, as `Encoder.from_run` takes it.

    Raises:
      ValueError: The run has no encoder, or one that cannot encode photos.
    """
    try:
        digest = hashlib.sha256((run / FILE).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(
            f"{run / FILE}: {error.strerror}; expected the encoder of a finished run"
        ) from None
    encoder = Encoder.from_run(run, backbone)
    num_bits = encoder.model.num_bits

    def encode(small: np.ndarray, sizes: np.ndarray, images: np.ndarray) -> np.ndarray:
        batches = batched.split(images, _BATCH)
        packed, keep_prob = batched.apply_all(encoder.encode_regions, batches, _BATCH)
        kept = encoder.code_set(packed, keep_prob, sizes).kept
        packed = np.where(kept[:, :, None], packed, packed[:, :1])
        return codes.to_bytes(packed, num_bits)

    def starts(sizes: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.eye(2, 3, dtype=np.float32), (len(sizes), 1, 2, 3))

    return Maker(f"encoder-1 {digest}", num_bits, encoder.image_size, encode, starts)


class _Prepared(NamedTuple):
    """A photo that was read: its small grey copy, its size, the encoder's image, and its status.

    `reason` says why it cannot be read, or is empty.
    """

    small: np.ndarray
    size: tuple[int, int]
    image: np.ndarray
    status: str
    reason: str


def _prepare(photo: sources.Photo, image_size: int) -> _Prepared:
    status, side, blank = sources.status(photo), perceptual.SIDE, np.zeros((0, 0), np.uint8)
    try:
        data = sources.content(photo)
        grey, size = photos.decode_grey(data, side, photo.id)
        image = photos.resize(photos.decode(data, photo.id), image_size) if image_size else blank
    except ValueError as error:
        return _Prepared(blank, (0, 0), blank, status, " ".join(str(error).split()))
    return _Prepared(grey, size, image, status, "")


def _identity(photo: sources.Photo, status: str) -> str:
    """Returns what a photo is recognised by in a later call."""
    return f"{photo.offset} {photo.length} {status} {photo.id}"


def _paths(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.npz") if path.stem.isdigit())


def _read(path: Path, maker: Maker) -> dict[str, np.ndarray] | None:
    """Returns the arrays of a file of fingerprints, or None if another maker wrote it."""
    arrays = read_npz(path, "start again", schemas.FINGERPRINTS)
    return arrays if str(arrays["maker"]) == maker.name else None


def _write(path: Path, maker: Maker, good: Sequence[tuple[sources.Photo, _Prepared]]) -> None:
    small = np.stack([ready.small for _, ready in good])
    sizes = np.array([ready.size for _, ready in good], np.int32)
    images = np.stack([ready.image for _, ready in good])
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        np.savez(
            stream,
            maker=np.str_(maker.name),
            identity=np.array([_identity(photo, ready.status) for photo, ready in good], "U"),
            codes=maker.codes(small, sizes, images),
            small=small,
            sizes=sizes,
        )


def make(found: Sequence[sources.Photo], directory: Path, maker: Maker) -> Fingerprints:
    """Returns the fingerprints of photos, and keeps them in a directory.

    Args:
      found: The photos.
      directory: Directory of the files. It may have those of earlier calls, also for other photos.
      maker: What makes the codes.

    Raises:
      ValueError: A file of an earlier call is damaged.
    """
    known: dict[str, tuple[Path, int]] = {}
    paths = _paths(directory)
    for path in paths:
        arrays = _read(path, maker)
        for number, identity in enumerate(arrays["identity"] if arrays else ()):
            known[str(identity)] = path, number
    identities = [_identity(photo, sources.status(photo)) for photo in found]
    pending = [row for row, identity in enumerate(identities) if identity not in known]
    damaged = {}
    number = int(paths[-1].stem) + 1 if paths else 0
    with ThreadPoolExecutor(len(cores()), thread_name_prefix="decode") as pool:
        wanted = [found[row] for row in pending]
        ready = bulk.prefetch(
            pool, lambda photo: _prepare(photo, maker.image_size), wanted, 2 * _BATCH
        )
        shown = logs.progress(
            ready, len(found), "fingerprints", len(found) - len(pending), unit="photos"
        )
        good: list[tuple[sources.Photo, _Prepared]] = []
        for row, one in zip(pending, shown, strict=True):
            if one.reason:
                damaged[row] = one.reason
            else:
                identities[row] = _identity(found[row], one.status)
                good.append((found[row], one))
            if good and (len(good) == SHARD_SIZE or row == pending[-1]):
                path = directory / f"{number:06d}.npz"
                _write(path, maker, good)
                for place, (photo, prepared) in enumerate(good):
                    known[_identity(photo, prepared.status)] = path, place
                number, good = number + 1, []
    return _gather(identities, damaged, known, directory, maker)


def _gather(
    identities: Sequence[str],
    damaged: dict[int, str],
    known: dict[str, tuple[Path, int]],
    directory: Path,
    maker: Maker,
) -> Fingerprints:
    """Returns the fingerprints by position, and removes the files that have none of them."""
    row = np.array([r for r in range(len(identities)) if r not in damaged], np.int64)
    places = [known[identities[int(r)]] for r in row]
    by_path: dict[Path, list[int]] = {}
    for position, (path, _) in enumerate(places):
        by_path.setdefault(path, []).append(position)
    parts: dict[str, Any] = {}
    for path, positions in by_path.items():
        arrays = _read(path, maker)
        assert arrays is not None
        for name in ("codes", "small", "sizes"):
            values = arrays[name][[places[position][1] for position in positions]]
            if name not in parts:
                parts[name] = np.empty((len(row), *values.shape[1:]), values.dtype)
            parts[name][positions] = values
    for path in _paths(directory):
        if path not in by_path:
            path.unlink()
    if not by_path:
        side = perceptual.SIDE
        parts = {
            "codes": np.zeros((0, 1, -(-maker.num_bits // 8)), np.uint8),
            "small": np.zeros((0, side, side), np.uint8),
            "sizes": np.zeros((0, 2), np.int32),
        }
    return Fingerprints(row, **parts, damaged=damaged)
