"""Buckets and Algorithm 1: exact search for images that have several binary codes each.

Algorithm 1 of the Multiple Code Hashing paper looks at the buckets around a query by growing
radius until k distinct images are found. The number of buckets explodes from radius 2 on, so the
index gives the same answer and the same counts another way: it looks up radius 0 and 1, and from
there reads only the codes that the triangle inequality leaves (`index_kernels.py`).

Conventions:
  * An item counts once, at its nearest code; equal distances come in ascending item order.
  * Within a radius, buckets are visited by ascending flip mask, code XOR query as an integer.
    `probed` counts them up to and including the one that holds the k-th distinct item, empty ones
    too; `nonempty` those of them that hold anything. The k-th item met in that order decides both;
    the answer's last items are the smallest among all at that distance, in whichever bucket.
  * Where fewer than k items exist, all 2^q buckets have been visited.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import comb
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8, UInt64

from mch_jax.files import codes_file
from mch_jax.kernels import index_kernels
from mch_jax.kernels.index_kernels import Segment

INDEX_FORMAT = "mch-index/2"
MAX_BITS = 64
MAX_ITEM = 2**32 - 1
NUM_PIVOTS = 256
CANDIDATE_FLOOR = 1024
CODES_PER_PIVOT = 64  # fewer pivots where choosing among them would cost more than reading
MERGE_SHARE = 0.25  # of the base's codes: a larger delta is merged by `add`
MERGE_FLOOR = 65536
QUERIES_PER_TASK = 64

# Measured (docs/search.md): one lookup costs as much as reading so many codes, and the rings around
# a query hold about this share of them. The C(q, 2) lookups of radius 2 never paid for themselves.
PROBE_COST, RING_SHARE, MAX_PROBE_RADIUS = 384, 1 / 64, 1

DTYPES = Segment(
    keys=np.uint64, offsets=np.uint32, items=np.uint32, pivots=np.uint64, rings=np.uint32,
    table=np.uint32, dead=np.uint64,
)  # fmt: skip

BINOMIALS = np.array(
    [[comb(n, i) if i <= n else 0 for i in range(MAX_BITS + 1)] for n in range(MAX_BITS + 1)],
    np.uint64,
)


_ARRAY_FILE = re.compile(rf"(base|delta)-({'|'.join(Segment._fields)})-[0-9a-f]{{16}}\.npy")


class Hits(NamedTuple):
    """The k nearest items of each query.

    Attributes:
      item: int64 [m, k], nearest first, each once; -1 where fewer than k exist.
      distance: int32 [m, k], bits between the query and the item's nearest code; -1 likewise.
      probed: [m], buckets that Algorithm 1 visits up to the k-th item; int64, or Python integers
        where one passes 2^63.
      nonempty: int64 [m], how many of them hold anything.
    """

    item: np.ndarray
    distance: np.ndarray
    probed: np.ndarray
    nonempty: np.ndarray


class Ball(NamedTuple):
    """Every item within a radius of each query.

    Attributes:
      offsets: int64 [m + 1]; the items of query i are `item[offsets[i]:offsets[i + 1]]`.
      item: int64, nearest first, each once.
      distance: int32.
      nonempty: int64 [m], non-empty buckets within the radius, of `ball_size(q, radius)` in all.
    """

    offsets: np.ndarray
    item: np.ndarray
    distance: np.ndarray
    nonempty: np.ndarray


class Visits(NamedTuple):
    """The non-empty buckets that Algorithm 1 visits for each query, in its order.

    Attributes:
      offsets: int64 [m + 1]; the buckets of query i are those from offsets[i] to offsets[i + 1].
      mask: uint64, code XOR query.
      fresh: int64, how many items a bucket is the first to hold, of the first k.
    """

    offsets: np.ndarray
    mask: np.ndarray
    fresh: np.ndarray


class _State(NamedTuple):
    """What a search reads: replaced as a whole, so that a search needs no lock."""

    base: Segment
    delta: Segment


def joined(balls: Sequence[tuple]) -> Ball:
    """Returns the balls of queries and of those that follow them as one."""
    if len(balls) == 1:
        return Ball(*balls[0])
    offsets, *arrays = zip(*balls, strict=True)
    sizes = np.concatenate([[0], *map(np.diff, offsets)])
    return Ball(np.cumsum(sizes), *map(np.concatenate, arrays))


def ball_size(num_bits: int, radius: int) -> int:
    """Returns the number of buckets within a radius: the sum of C(q, i) for i up to it."""
    return sum(comb(num_bits, i) for i in range(min(radius, num_bits) + 1))


class BucketIndex:
    """Exact Hamming search over items with several binary codes each, of 1 to 64 bits.

    Searches may run in several threads, also beside `add`, `remove`, `merge` and `save`, which wait
    for each other; a search sees the index as it was before or after such a call.
    """

    def __init__(self, num_bits: int, state: _State):
        self.num_bits = num_bits
        self._state = state
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._lock = threading.RLock()
        self._stored: tuple[Path | None, dict] = (None, {})
        self._merge_lock = threading.Lock()
        self._merger: threading.Thread | None = None
        self._meanwhile: list[tuple] | None = None  # changes since the merge under way began
        self.version: str | None = None  # of the saved state that was opened or saved last

    @classmethod
    def build(
        cls, codes: UInt8[np.ndarray, "c bytes"], item: Int[np.ndarray, " c"], num_bits: int
    ) -> "BucketIndex":
        """Returns an index of codes (bit i is bit i % 8 of byte i // 8) and the items they name.

        Raises:
          ValueError: num_bits outside 1 to 64, or codes or items that do not fit.
        """
        if not 1 <= num_bits <= MAX_BITS:
            raise ValueError(
                f"num_bits is {num_bits}, expected 1 to {MAX_BITS}: the index keeps a code in one "
                "64-bit word; rank longer codes with mch_jax.metrics instead"
            )
        words, item = to_words(codes, num_bits), checked_items(item, len(codes))
        base = _build_segment(words, item, num_bits)
        return cls(int(num_bits), _State(base, _empty_segment(int(num_bits))))

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "BucketIndex":
        """Returns an index of a codes file, such as `codes/database.npz` of a run."""
        file = codes_file.load(path)
        try:
            return cls.build(file.codes, file.item, file.num_bits)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __len__(self) -> int:
        """Returns the number of distinct items."""
        base, delta = self._current()
        items = np.concatenate([_live_rows(base)[1], delta.items])
        return len(np.unique(items))

    @property
    def num_codes(self) -> int:
        """Number of (code, item) pairs, removed ones too until the next merge."""
        base, delta = self._current()
        return len(base.items) + len(delta.items)

    @property
    def nbytes(self) -> int:
        """Bytes of memory or, of an opened index, of mapped file that the arrays take."""
        base, delta = self._current()
        return sum(array.nbytes for array in (*base, *delta))

    @property
    def pivots(self) -> UInt64[np.ndarray, " p"]:
        """The codes around which the others are arranged in rings, as integers."""
        return np.asarray(self._current().base.pivots)

    def rings(
        self, codes: UInt8[np.ndarray, "c bytes"]
    ) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " c"]]:
        """Returns the nearest pivot of each code, and the distance to it."""
        ring = index_kernels.assign(to_words(codes, self.num_bits), self.pivots, self.num_bits)
        return ring // (self.num_bits + 1), ring % (self.num_bits + 1)

    def search(
        self, query_codes: UInt8[np.ndarray, "m bytes"], k: int, threads: int | None = None
    ) -> Hits:
        """Returns the k nearest items of each query and Algorithm 1's counts.

        Args:
          query_codes: one code a query.
          k: how many items, at least 1; may exceed the number that exist.
          threads: at most so many; by default one a core, for batches only.
        """
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        queries = to_words(query_codes, self.num_bits)
        base, delta = self._current()
        item = np.empty((len(queries), k), np.int64)
        distance = np.empty((len(queries), k), np.int32)
        probed = np.empty(len(queries), np.uint64)
        nonempty = np.empty(len(queries), np.int64)
        probe_radius = _probe_radius(base, self.num_bits)

        turns = _turns(base, queries, self.num_bits)

        def run(rows: slice):
            index_kernels.search(
                base, delta, queries, turns[rows], self.num_bits, k, probe_radius, BINOMIALS,
                item, distance, probed, nonempty,
            )  # fmt: skip

        _in_threads(run, len(queries), threads)
        return Hits(item, distance, self._probed(probed), nonempty)

    def within(
        self, query_codes: UInt8[np.ndarray, "m bytes"], radius: int, threads: int | None = None
    ) -> Ball:
        """Returns every item within `radius` bits of each query, nearest first."""
        if radius < 0:
            raise ValueError(f"radius is {radius}, expected at least 0")
        queries, radius = to_words(query_codes, self.num_bits), min(radius, self.num_bits)
        base, delta = self._current()
        probing = radius <= _probe_radius(base, self.num_bits)
        alone = radius == 0 and not len(base.dead) and not len(delta.keys)

        def run(rows: slice):
            if alone:
                return index_kernels.exact(base, queries[rows], self.num_bits)
            return index_kernels.within(base, delta, queries[rows], self.num_bits, radius, probing)

        return joined(_in_threads(run, len(queries), threads))

    def visits(
        self,
        query_codes: UInt8[np.ndarray, "m bytes"],
        k: int | None = None,
        radius: Int[np.ndarray, " m"] | None = None,
    ) -> Visits:
        """Returns the non-empty buckets that Algorithm 1 visits up to the k-th item, one by one.

        Args:
          query_codes: one code a query.
          k: how many items; all when not given.
          radius: how far each query has to look, where that is known.
        """
        queries = to_words(query_codes, self.num_bits)
        base, delta = self._current()
        if radius is None:
            radius = np.full(len(queries), self.num_bits)
        k = len(base.items) + len(delta.items) + 1 if k is None else k
        return Visits(
            *index_kernels.visits(
                base, delta, queries, self.num_bits, np.asarray(radius, np.int64), k
            )
        )

    def add(self, codes: UInt8[np.ndarray, "c bytes"], item: Int[np.ndarray, " c"]) -> None:
        """Adds codes; an item that exists already gets them besides those it has.

        Where much was added since the last merge, a thread begins another one.
        """
        words, item = to_words(codes, self.num_bits).copy(), checked_items(item, len(codes))
        with self._lock:
            self._pending.append((words, item))
            if self._meanwhile is not None:
                self._meanwhile.append((words, item))
            waiting = sum(len(items) for _, items in self._pending)
            base, delta = self._state.base, self._state.delta
            large = len(delta.items) + waiting > max(MERGE_FLOOR, MERGE_SHARE * len(base.items))
            if large and not (self._merger and self._merger.is_alive()):
                self._merger = threading.Thread(target=self.merge, daemon=True)
                self._merger.start()

    def remove(self, item: int | Int[np.ndarray, " n"]) -> None:
        """Removes items with all their codes; those that are not there make no difference."""
        item = checked_items(np.atleast_1d(item))
        with self._lock:
            base, delta = self._current()
            if self._meanwhile is not None:
                self._meanwhile.append((None, item))
            size = int(base.items.max()) // 64 + 1 if len(base.items) else 0
            dead = base.dead.copy() if len(base.dead) else np.zeros(size, np.uint64)
            index_kernels.mark(item[item < 64 * size], dead)
            words, items = _rows(delta)
            keep = ~np.isin(items, item)
            if not keep.all():
                delta = _build_segment(words[keep], items[keep], self.num_bits)
            self._state = _State(base._replace(dead=dead), delta)

    def merge(self) -> None:
        """Rewrites base, additions and removals as one base: searches are fastest after it.

        Searches, additions and removals in other threads go on meanwhile.
        """
        with self._merge_lock:
            with self._lock:
                base, delta = self._current()
                self._meanwhile = []
            try:
                parts = [_live_rows(base), _rows(delta)]
                words, item = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
                base = _build_segment(words, item, self.num_bits)
                with self._lock:
                    changes, self._pending = self._meanwhile, []
                    self._state = _State(base, _empty_segment(self.num_bits))
                    self._meanwhile = None
                    for words, item in changes:
                        if words is None:
                            self.remove(item)
                        else:
                            self._pending.append((words, item))
            finally:
                self._meanwhile = None

    def save(self, directory: str | os.PathLike) -> None:
        """Saves the index, replacing the one in `directory` in one step.

        Arrays that the directory holds already are not written again, so that after an `add` or a
        `remove` only these are. A crash leaves the index that was saved last.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with self._lock, _locked(directory):
            if (directory / "meta.json").exists():
                _read_meta(directory, any_version=True)  # never overwrite something else
            base, delta = self._current()
            home, known = self._stored
            known = known if home == directory.resolve() else {}
            files, stored = {}, {}
            for name, array in _named(base, delta):
                was, entry = known.get(name, (None, None))
                if was is not array or not (directory / entry["file"]).exists():
                    entry = _write_array(directory, name, array)
                files[name], stored[name] = entry, (array, entry)
            meta = {"format": INDEX_FORMAT, "num_bits": self.num_bits, "files": files}
            _write_meta(directory, meta)
            self.version = _digest(meta)
            self._stored = (directory.resolve(), stored)
            _remove_others(directory, {entry["file"] for entry in files.values()})

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike,
        verify: bool = True,
        like: "BucketIndex | None" = None,
    ) -> "BucketIndex":
        """Opens a saved index, its arrays mapped into memory.

        Args:
          directory: where `save` put it.
          verify: compare every file with its checksum, which reads all of it once. Without, only
            names, sizes and shapes are checked.
          like: an earlier state of the same directory; what has not changed is taken from it.

        Raises:
          ValueError: a file is missing, damaged or not of an index; the message names it.
        """
        directory = Path(directory)
        home, known = like._stored if like else (None, {})
        known = known if home == directory.resolve() else {}
        while True:
            meta = _read_meta(directory)
            try:
                arrays = {
                    name: known[name][0]
                    if name in known and known[name][1] == entry
                    else _map_array(directory, name, entry, verify)
                    for name, entry in meta["files"].items()
                }
                break
            except FileNotFoundError as error:
                if _read_meta(directory) == meta:
                    raise ValueError(f"{error.filename} is missing; save the index again") from None
                # Saved by another process between the two reads: once more.
        base, delta = (
            Segment(*(arrays[f"{part}-{field}"] for field in Segment._fields))
            for part in ("base", "delta")
        )
        for segment in (base, delta):
            _check_shapes(directory, segment, meta["num_bits"])
        index = cls(meta["num_bits"], _State(base, delta))
        stored = {name: (arrays[name], entry) for name, entry in meta["files"].items()}
        index._stored, index.version = (directory.resolve(), stored), _digest(meta)
        return index

    @staticmethod
    def version_of(directory: str | os.PathLike) -> str:
        """Returns the version of the state that is saved in a directory."""
        return _digest(_read_meta(Path(directory)))

    def _current(self) -> _State:
        """Returns the state with pending additions in its delta."""
        if self._pending:
            with self._lock:
                base, delta = self._state
                parts = [_rows(delta), *self._pending]
                words, item = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
                later = _build_segment(words, item, self.num_bits)
                self._state = _State(base, later)
                self._pending = []
        return self._state

    def _probed(self, probed: np.ndarray) -> np.ndarray:
        """Returns the kernel's counts with 0 as 2^q, as int64 where they fit."""
        if self.num_bits < 63:
            probed[probed == 0] = 1 << self.num_bits
            return probed.view(np.int64)
        if ((probed > 0) & (probed < 1 << 63)).all():
            return probed.view(np.int64)
        return np.array([int(count) or 1 << self.num_bits for count in probed], object)


def to_words(codes: UInt8[np.ndarray, "c bytes"], num_bits: int) -> UInt64[np.ndarray, " c"]:
    """Returns codes as integers: byte i // 8, bit i % 8 of a code is bit i of its word.

    Raises:
      ValueError: dtype, shape or padding is not that of codes of so many bits.
    """
    codes, num_bytes = np.asarray(codes), -(-num_bits // 8)
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != num_bytes:
        raise ValueError(
            f"codes are {codes.dtype} {list(codes.shape)}, expected uint8 [n, {num_bytes}] "
            f"for {num_bits} bits"
        )
    if num_bytes == 8:
        words = np.ascontiguousarray(codes).view("<u8")[:, 0]
    else:
        wide = np.zeros((len(codes), 8), np.uint8)
        wide[:, :num_bytes] = codes
        words = wide.view("<u8")[:, 0]
    if num_bits % 8 and len(words) and int(words.max()) >> num_bits:
        raise ValueError(f"codes have bits set past the {num_bits} that count; padding must be 0")
    return words


def checked_items(item: Int[np.ndarray, " n"], size: int | None = None) -> np.ndarray:
    """Returns items as the index keeps them.

    Raises:
      ValueError: they are not as many integers as expected, from 0 to MAX_ITEM.
    """
    item = np.asarray(item)
    if item.ndim != 1 or (item.dtype.kind not in "iu" and item.size):
        raise ValueError(f"item is {item.dtype} {list(item.shape)}, expected integers [n]")
    if size is not None and len(item) != size:
        raise ValueError(f"item has {len(item)} entries, codes {size}; expected one item a code")
    if len(item) and not 0 <= int(item.min()) <= int(item.max()) <= MAX_ITEM:
        raise ValueError(
            f"item goes from {item.min()} to {item.max()}, expected 0 to {MAX_ITEM}: use rows"
        )
    return item.astype(np.uint32)


def _build_segment(words: np.ndarray, item: np.ndarray, num_bits: int) -> Segment:
    """Returns the segment of codes and items in any order, repeats dropped."""
    if len(words) >= 2**32:
        raise ValueError(f"{len(words)} codes, expected fewer than 2^32; use several indexes")
    order = np.argsort(words)
    keys, offsets, items = index_kernels.distinct(words[order], item[order])
    del order
    fullest = np.argsort(-np.diff(offsets.astype(np.int64)), kind="stable")
    fullest = fullest[: max(CANDIDATE_FLOOR, len(keys) // 16)]  # where codes are dense
    limit = min(NUM_PIVOTS, -(-len(keys) // CODES_PER_PIVOT))
    pivots = np.empty(0, np.uint64)
    if limit:
        pivots = index_kernels.choose_pivots(keys[fullest], num_bits // 6, limit)
    ring = index_kernels.assign(keys, pivots, num_bits)
    num_rings = len(pivots) * (num_bits + 1)
    arranged = _aligned(len(keys))
    offsets, items, rings = index_kernels.arrange(keys, offsets, items, ring, num_rings, arranged)
    keys = arranged
    table = np.zeros(_num_slots(len(keys), num_bits), np.uint32)
    index_kernels.fill_table(keys, table, num_bits)
    return Segment(keys, offsets, items, pivots, rings, table, np.empty(0, np.uint64))


def _aligned(size: int) -> UInt64[np.ndarray, " n"]:
    """Returns room for words that begins at a cache line, as mapped files do."""
    room = np.empty(size + 8, np.uint64)
    start = -room.ctypes.data % 64 // 8
    return room[start : start + size]


def _num_slots(num_keys: int, num_bits: int) -> int:
    if num_bits <= index_kernels.DIRECT_BITS:
        return 1 << num_bits
    return 1 << max(1, (3 * num_keys // 2).bit_length())


@functools.cache
def _empty_segment(num_bits: int) -> Segment:
    return _build_segment(np.empty(0, np.uint64), np.empty(0, np.uint32), num_bits)


def _rows(segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    """Returns the code and the item of every pair, removed ones too."""
    return np.repeat(segment.keys, np.diff(segment.offsets)), np.asarray(segment.items)


def _live_rows(segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    words, items = _rows(segment)
    if not len(segment.dead):
        return words, items
    live = segment.dead[items >> np.uint32(6)] >> (items & np.uint32(63)).astype(np.uint64)
    keep = live & np.uint64(1) == 0
    return words[keep], items[keep]


def _turns(segment: Segment, queries: np.ndarray, num_bits: int) -> Int[np.ndarray, " m"]:
    """Returns an order of the queries in which neighbours read the same part of memory."""
    if len(queries) < QUERIES_PER_TASK or not len(segment.pivots):
        return np.arange(len(queries))
    return np.argsort(index_kernels.assign(queries, segment.pivots, num_bits), kind="stable")


def _probe_radius(segment: Segment, num_bits: int) -> int:
    """Returns up to which radius looking up codes costs less than reading rings."""
    radius, rings = 0, len(segment.keys) * RING_SHARE
    most = min(MAX_PROBE_RADIUS, num_bits)
    while radius < most and comb(num_bits, radius + 1) * PROBE_COST < rings:
        radius += 1
    return radius


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_num_cores(), thread_name_prefix="index")


@functools.cache
def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def _in_threads(run, size: int, threads: int | None) -> list:
    """Returns the results of `run` on slices of the queries, in their order."""
    threads = _num_cores() if threads is None else threads
    tasks = min(4 * threads, -(-size // QUERIES_PER_TASK))
    if threads <= 1 or tasks <= 1:
        return [run(slice(0, size))]
    bounds = np.linspace(0, size, tasks + 1).astype(int)
    return list(_pool().map(run, map(slice, bounds[:-1], bounds[1:])))


# Files -----------------------------------------------------------------------------------------


def _named(base: Segment, delta: Segment):
    for part, segment in (("base", base), ("delta", delta)):
        for field, array in zip(Segment._fields, segment, strict=True):
            yield f"{part}-{field}", array


@contextlib.contextmanager
def _locked(directory: Path):
    """Keeps other writers out of the directory."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sync_directory(directory: Path):
    handle = os.open(directory, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _checksum(raw: np.ndarray) -> str:
    whole = len(raw) // 8 * 8
    tail = np.zeros(8, np.uint8)
    tail[: len(raw) - whole] = raw[whole:]
    value = index_kernels.checksum(raw[:whole].view(np.uint64))
    return f"{value:016x}-{tail.tobytes().hex()}"


def _write_array(directory: Path, name: str, array: np.ndarray) -> dict:
    """Writes an array under a new name, to the disk; returns its entry in the meta file."""
    path = directory / f"{name}-{secrets.token_hex(8)}.npy"
    with path.open("xb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    raw = np.asarray(np.memmap(path, np.uint8, "c"))
    return {"file": path.name, "bytes": len(raw), "checksum": _checksum(raw)}


def _digest(meta: dict) -> str:
    return hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write_meta(directory: Path, meta: dict):
    """Puts the meta file in place: the moment at which the new state counts."""
    path = directory / "meta.json.new"
    with path.open("w") as file:
        json.dump({**meta, "checksum": _digest(meta)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_directory(directory)
    path.replace(directory / "meta.json")
    _sync_directory(directory)


def _read_meta(directory: Path, any_version: bool = False) -> dict:
    path = directory / "meta.json"
    try:
        meta = json.loads(path.read_bytes())
        version = meta["format"]
    except OSError as error:
        raise ValueError(
            f"{path}: {error.strerror}; expected a directory written by save"
        ) from None
    except (ValueError, TypeError, LookupError):
        raise ValueError(f"{path} is damaged or not of an index; save the index again") from None
    if any_version and str(version).startswith("mch-index/"):
        return meta
    if version != INDEX_FORMAT:
        raise ValueError(f"{path} is of format {version!r}, expected {INDEX_FORMAT!r}")
    if meta.pop("checksum", None) != _digest(meta):
        raise ValueError(f"{path} is damaged: its checksum differs; save the index again")
    if not _is_whole(meta):
        raise ValueError(f"{path} is not as save writes it; save the index again")
    return meta


def _is_whole(meta: dict) -> bool:
    """Returns whether a meta file says all that opening needs, of files in its own directory."""
    num_bits, files = meta.get("num_bits"), meta.get("files")
    names = {f"{part}-{field}" for part in ("base", "delta") for field in Segment._fields}
    return (
        type(num_bits) is int
        and 1 <= num_bits <= MAX_BITS
        and isinstance(files, dict)
        and files.keys() == names
        and all(
            isinstance(entry, dict)
            and type(entry.get("bytes")) is int
            and isinstance(entry.get("checksum"), str)
            and _ARRAY_FILE.fullmatch(str(entry.get("file")))
            for entry in files.values()
        )
    )


def _map_array(directory: Path, name: str, entry: dict, verify: bool) -> np.ndarray:
    """Returns a file's array, mapped. Copy on write, as kernels take arrays they could write."""
    path, dtype = directory / entry["file"], np.dtype(getattr(DTYPES, name.split("-")[1]))
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise ValueError(
            f"{path} has {size} bytes, expected {entry['bytes']}; save the index again"
        )
    raw = np.asarray(np.memmap(path, np.uint8, "c"))
    if verify and _checksum(raw) != entry["checksum"]:
        raise ValueError(f"{path} is damaged: its checksum differs; save the index again")
    start = 10 + int(raw[8]) + 256 * int(raw[9])  # the .npy header: magic, version, length, text
    if (size - start) % dtype.itemsize or start % 64:
        raise ValueError(f"{path} is damaged: its header differs; save the index again")
    return raw[start:].view(dtype)


def _check_shapes(directory: Path, segment: Segment, num_bits: int):
    """Refuses arrays that do not belong together, which no checksum of one file can tell."""
    keys, offsets, items, pivots, rings, table, _ = segment
    fits = (
        len(offsets) == len(keys) + 1
        and offsets[-1] == len(items)
        and len(rings) == len(pivots) * (num_bits + 1) + 1
        and rings[-1] == len(keys)
        and len(table) == _num_slots(len(keys), num_bits)
    )
    if not fits:
        raise ValueError(f"{directory}: the files do not belong together; save the index again")


def _remove_others(directory: Path, names: set[str]):
    """Deletes arrays of earlier states and of saves that did not finish."""
    for path in directory.iterdir():
        if _ARRAY_FILE.fullmatch(path.name) and path.name not in names:
            path.unlink()
