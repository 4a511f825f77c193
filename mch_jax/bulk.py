"""Bulk encoding: photos without labels to shards of codes, in this process or on a cluster.

A shard depends on the encoder and its photos alone, and is written atomically. It therefore has the
same bytes whichever process encodes it, even if several do, and a killed export resumes with the
shards that are missing.
"""

import collections
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from absl import logging

from mch_jax import batched
from mch_jax.data import contents, photos, sources
from mch_jax.encoder import FILE, Encoder
from mch_jax.files import (
    code_sets,
    codes_file,
    made_from,
    read_json,
    read_json_lines,
    schemas,
    whole_file,
    write_json,
)
from mch_jax.training import logs

FORMAT = "mch-export/1"
_NUM_TRIED = 16  # photos by which the time of an export is estimated
_S = TypeVar("_S")
_T = TypeVar("_T")


class Plan(NamedTuple):
    """The photos to encode and the files to write.

    Attributes:
      run: Workdir of the run whose encoder is used.
      directory: Directory of the shards.
      shards: The photos of each shard.
      batch_size: Number of photos that the network is called with. It is part of the plan since
        the last bit of a logit may depend on it.
      backbone: The run's backbone, as `Encoder.from_run` takes it.
    """

    run: Path
    directory: Path
    shards: list[list[sources.Photo]]
    batch_size: int
    backbone: str | None = None

    def path(self, number: int) -> Path:
        """Returns the path of a shard's codes file, which exists once the shard is done."""
        return self.directory / f"{number:06d}.npz"

    def made_from_path(self, number: int) -> Path:
        """Returns the path of the record of what a shard's photos contained."""
        return self.directory / f"{number:06d}.made_from.json"

    def damaged_path(self, number: int) -> Path:
        """Returns the path of the list of a shard's damaged photos, which exists if it has any."""
        return self.directory / f"{number:06d}.damaged.jsonl"

    def pending(self) -> list[int]:
        """Returns the numbers of the shards that are not encoded yet."""
        return [n for n in range(len(self.shards)) if not self.path(n).exists()]


def make_plan(
    run: Path,
    found: Sequence[sources.Photo],
    directory: Path,
    shard_size: int,
    batch_size: int,
    backbone: str | None = None,
) -> Plan:
    """Returns a plan, and writes everything that the shards depend on into plan.json.

    Shards of a former call whose photos have changed since are removed.

    Args:
      run: Workdir of the run whose encoder is used.
      found: The photos.
      directory: Directory of the shards: a new one, or that of an export to resume.
      shard_size: Number of photos per shard.
      batch_size: Number of photos that the network is called with. Smaller if there are fewer.
      backbone: The run's backbone, as `Encoder.from_run` takes it.

    Raises:
      ValueError: The directory has shards of another plan or other files, or the run has no
        encoder.
    """
    shards = [list(found[n : n + shard_size]) for n in range(0, len(found), shard_size)]
    batch_size = min(batch_size, 1 << (len(found) - 1).bit_length())
    try:
        encoder = (run / FILE).read_bytes()
    except OSError as error:
        raise ValueError(
            f"{run / FILE}: {error.strerror}; expected the encoder of a finished run"
        ) from None
    names = "\0".join(f"{photo.id}\0{photo.length}" for photo in found)
    depends = {
        "format": FORMAT,
        "encoder": hashlib.sha256(encoder).hexdigest(),
        "photos": hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest(),
        "count": len(found),
        "shard_size": shard_size,
        "batch_size": batch_size,
    }
    path = directory / "plan.json"
    if path.exists():
        before = read_json(path, f"remove {directory}", schemas.PLAN)
        differing = [name for name in depends if before.get(name) != depends[name]]
        if differing and not any(directory.glob("*.npz")):  # nothing is lost with the old plan
            write_json(path, depends)
        elif differing:
            raise ValueError(
                f"{directory} holds an export with another {differing[0]} "
                f"({before.get(differing[0])}, now {depends[differing[0]]}); use the same value, "
                "or remove the directory"
            )
    elif directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty and holds no export; choose another directory")
    else:
        write_json(path, depends)
    plan = Plan(run, directory, shards, batch_size, backbone)
    _remove_stale(plan)
    return plan


def _remove_stale(plan: Plan) -> None:
    """Removes the shards whose photos have changed since they were encoded.

    Photos are read again only if the sizes or times of their files have changed.
    """
    unverified = 0
    for number, shard in enumerate(plan.shards):
        if not plan.path(number).exists():
            continue
        if not plan.made_from_path(number).exists():
            unverified += 1
            continue
        record = read_json(plan.made_from_path(number), "start again")
        if record.get("files") == made_from.digest(*map(sources.status, shard)):
            continue
        if record.get("photos") == made_from.digest(*map(_content_digest, shard)):
            continue
        logging.warning("shard %d: its photos changed; encoding them again", number)
        plan.path(number).unlink()
    if unverified:
        logging.warning(
            "%s: an earlier version wrote %d shards without a record of their photos; unverified",
            plan.directory, unverified,
        )  # fmt: skip


def _content_digest(photo: sources.Photo) -> bytes:
    """Returns the digest of a photo's bytes, or no bytes if it cannot be read."""
    try:
        return contents.digest(sources.content(photo))
    except ValueError:
        return b""


class Prepared(NamedTuple):
    """A decoded photo at the encoder's image size.

    Attributes:
      image: The image; zeros for a photo that cannot be decoded.
      size: Width and height of the original photo in pixels.
      reason: Why the photo cannot be decoded, or empty.
      status: Size and times of the photo's file (`sources.status`), before it was read.
      digest: Digest of the photo's bytes; empty if it cannot be read.
    """

    image: np.ndarray
    size: tuple[int, int]
    reason: str
    status: str
    digest: bytes


def prepare(photo: sources.Photo, side: int) -> Prepared:
    """Decodes a photo and resizes it to `side` x `side` pixels."""
    status, digest = sources.status(photo), b""
    try:
        data = sources.content(photo)
        digest = contents.digest(data)
        pixels = photos.decode(data, photo.id)
    except ValueError as error:
        reason, blank = " ".join(str(error).split()), np.zeros((side, side, 3), np.uint8)
        return Prepared(blank, (0, 0), reason, status, digest)
    height, width, _ = pixels.shape
    return Prepared(photos.resize(pixels, side), (width, height), "", status, digest)


def prefetch(
    pool: ThreadPoolExecutor, function: Callable[[_S], _T], items: Iterable[_S], count: int
) -> Iterator[_T]:
    """Yields `function(item)` in the items' order, and computes at most `count` of them ahead."""
    waiting = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > count:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def encode_shards(
    plan: Plan,
    encoder: Encoder,
    numbers: Sequence[int],
    threads: int | None = None,
    on_photos: Callable[[int], Any] = lambda count: None,
) -> Iterator[int]:
    """Encodes shards and yields the number of each when it is done.

    Photos are decoded in threads while the network runs.

    Args:
      plan: The plan.
      encoder: The encoder of the plan's run.
      numbers: Numbers of the shards to encode.
      threads: Number of threads that decode. Defaults to one per core.
      on_photos: Called with the number of photos of each batch that was read.
    """
    with ThreadPoolExecutor(threads or os.cpu_count(), thread_name_prefix="decode") as pool:
        wanted = itertools.chain.from_iterable(plan.shards[number] for number in numbers)
        ready = prefetch(
            pool, lambda photo: prepare(photo, encoder.image_size), wanted, 3 * plan.batch_size
        )
        for number in numbers:
            _encode_shard(plan, encoder, number, ready, on_photos)
            yield number


def _encode_shard(
    plan: Plan,
    encoder: Encoder,
    number: int,
    ready: Iterator[Prepared],
    on_photos: Callable[[int], Any],
) -> None:
    """Encodes a shard, whose photos are the next ones of `ready`, and writes its files."""
    shard, sizes, reasons = plan.shards[number], [], []
    status, digests = [], []
    began, waited = time.monotonic(), 0.0

    def batches() -> Iterator[np.ndarray]:
        nonlocal waited
        for part in batched.split(shard, plan.batch_size):
            asked = time.monotonic()
            batch = list(itertools.islice(ready, len(part)))
            waited += time.monotonic() - asked
            sizes.extend(photo.size for photo in batch)
            reasons.extend(photo.reason for photo in batch)
            status.extend(photo.status for photo in batch)
            digests.extend(photo.digest for photo in batch)
            yield np.stack([photo.image for photo in batch])
            on_photos(len(batch))

    results = batched.apply_all(encoder.encode_regions, batches(), plan.batch_size)
    good = np.array([not reason for reason in reasons])
    if good.any():  # otherwise the rate would be that of damaged photos alone
        seconds = time.monotonic() - began
        logging.info(
            "shard %d: %.0f photos/s, %.0f %% of the time in the network, %.0f %% waiting",
            number,
            len(shard) / seconds,
            100 * (1 - waited / seconds),
            100 * waited / seconds,
        )
    packed, keep_prob = (values[good] for values in results)
    ids = np.array([photo.id for photo, is_good in zip(shard, good, strict=True) if is_good], "U")
    code_set = encoder.code_set(packed, keep_prob, np.array(sizes, np.int32)[good])
    labels = np.zeros((len(ids), 0), np.uint8)
    _write_damaged(
        plan.damaged_path(number),
        [
            {"id": photo.id, "reason": reason}
            for photo, reason in zip(shard, reasons, strict=True)
            if reason
        ],
    )
    record = {"files": made_from.digest(*status), "photos": made_from.digest(*digests)}
    write_json(plan.made_from_path(number), record)
    file = code_sets.flatten(code_set, ids, labels, encoder.model.num_bits)
    codes_file.save(plan.path(number), file)  # the last file, which marks the shard as done


def _write_damaged(path: Path, damaged: list[dict[str, str]]) -> None:
    """Writes one JSON object per damaged photo; if there are none, removes the file."""
    if not damaged:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in damaged))


def read_damaged(plan: Plan) -> list[dict[str, str]]:
    """Returns `id` and `reason` of the damaged photos of all shards."""
    paths = [plan.damaged_path(number) for number in range(len(plan.shards))]
    return [
        entry
        for path in paths
        if path.exists()
        for entry in read_json_lines(path, f"remove {plan.directory}", schemas.DAMAGED)
    ]


def merge(plan: Plan, path: Path) -> None:
    """Writes the codes of all shards into one file, and the list of damaged photos beside it."""
    files = [codes_file.load(plan.path(number)) for number in range(len(plan.shards))]
    starts = np.cumsum([0, *(len(file.ids) for file in files)])
    arrays = {
        name: np.concatenate([getattr(file, name) for file in files])
        for name in ("codes", "ids", "keep_prob", "box", "labels")
    }
    item = np.concatenate([file.item + start for file, start in zip(files, starts, strict=False)])
    _write_damaged(path.with_suffix(".damaged.jsonl"), read_damaged(plan))
    file = codes_file.CodeFile(item=item, num_bits=files[0].num_bits, **arrays)
    codes_file.save(path, file)


def encode_here(plan: Plan, workers: int | None = None) -> None:
    """Encodes the missing shards in this process.

    Args:
      plan: The plan.
      workers: Number of threads that decode photos. Defaults to one per core.
    """
    pending = plan.pending()
    if not pending:
        return
    encoder = Encoder.from_run(plan.run, plan.backbone)
    total = sum(len(plan.shards[number]) for number in pending)
    logging.info(estimate(plan, encoder, workers))
    shown = logs.Progress(total, "codes", unit="photos")
    for _ in encode_shards(plan, encoder, pending, workers, shown.advance):
        pass
    shown.close()


def estimate(plan: Plan, encoder: Encoder, threads: int | None = None) -> str:
    """Returns how long an export will take, by the rates of a batch and of some photos.

    Args:
      plan: The plan.
      encoder: The encoder of the plan's run.
      threads: Number of threads that decode. Defaults to one per core.
    """
    photos = [photo for number in plan.pending() for photo in plan.shards[number]]
    if len(photos) <= 2 * plan.batch_size:
        return f"{len(photos):,} photos to encode"
    threads = threads or os.cpu_count() or 1
    few = photos[:: max(1, len(photos) // _NUM_TRIED)][:_NUM_TRIED]
    side, began = encoder.image_size, time.monotonic()
    for photo in few:
        prepare(photo, side)
    decoding = threads * len(few) / (time.monotonic() - began)
    batch = np.zeros((plan.batch_size, side, side, 3), np.uint8)
    encoder.encode_regions(batch)  # compiles
    began = time.monotonic()
    encoder.encode_regions(batch)
    network = plan.batch_size / (time.monotonic() - began)
    seconds = len(photos) / min(network, decoding)
    return (
        f"{len(photos):,} photos to encode, about {logs.duration(seconds)}: the network takes "
        f"{network:,.1f} photos/s, {threads} threads decode {decoding:,.1f} photos/s"
    )


class Worker:
    """Encodes shards in a process of a cluster, on the accelerator assigned to the process."""

    def __init__(self, plan: Plan, threads: int):
        self._plan, self._threads = plan, threads
        self._encoder = Encoder.from_run(plan.run, plan.backbone)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Encodes the shards in the rows, except those that another worker has finished."""
        for number, text in zip(rows["number"].tolist(), rows["photos"].tolist(), strict=True):
            self._plan.shards[number] = [sources.Photo(*photo) for photo in json.loads(text)]
            if not self._plan.path(number).exists():
                list(encode_shards(self._plan, self._encoder, [number], self._threads))
            self._plan.shards[number] = []
        return {"number": rows["number"]}


def encode_on_ray(plan: Plan, workers: int | None = None) -> None:
    """Encodes the missing shards on a Ray cluster, one shard at a time on each actor.

    The environment variable RAY_ADDRESS names the cluster; without it, one is started on this
    machine. The run, the photos and the output need the same paths on all nodes. If an actor dies,
    it is replaced, and its shard is encoded again.

    Args:
      plan: The plan.
      workers: Number of actors. Defaults to one per accelerator, or one if there is none.

    Raises:
      ValueError: Ray is not installed.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError(
            "--engine=ray needs the package ray; run pip install 'mch_jax[cluster]'"
        ) from None
    pending = plan.pending()
    if not pending:
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    is_own = not ray.is_initialized()
    if is_own:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        resources = ray.cluster_resources()
        accelerators = int(resources.get("GPU", 0))
        count = max(1, min(workers or accelerators or 1, len(pending)))
        cores = max(1, int(resources.get("CPU", 1)) // count)
        rows = [{"number": n, "photos": json.dumps(plan.shards[n])} for n in pending]
        slim = plan._replace(shards=[[] for _ in plan.shards])  # photos come with the rows
        ray.data.DataContext.get_current().enable_progress_bars = False
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Worker,
            fn_constructor_args=(slim, cores),
            batch_size=1,
            concurrency=count,
            num_cpus=cores,
            num_gpus=1 if accelerators else None,
        )
        total = sum(len(plan.shards[number]) for number in pending)
        shown = logs.Progress(total, "codes", unit="photos")
        for row in done.iter_rows():
            shown.advance(len(plan.shards[row["number"]]))
        shown.close()
    finally:
        if is_own:
            ray.shutdown()


ENGINES: dict[str, Callable[[Plan, int | None], None]] = {
    "local": encode_here,
    "ray": encode_on_ray,
}
