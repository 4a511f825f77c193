"""The bucket index over several machines: shards by hash of the image, replicas on Ray.

All codes of an image lie in one shard, so that a shard answers for its images alone and the answers
of all shards are merged into those of one index, counts included. The files of the shards, on
storage that every machine sees, are the truth: changes are written there, and a replica holds no
state of its own. Each request names the version of the shard that it wants; a replica that has
another one, because it was dead or deaf when a change was made, reads the files before it answers.

`Shards` are the files, `Replica` serves one of them, `ShardedIndex` is what a user calls, and
`connect` puts replicas on the nodes of a Ray cluster. Only `connect` knows of Ray.
"""

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from mch_jax.files import write_json
from mch_jax.index import (
    BucketIndex,
    ItemsWithin,
    NearestItems,
    checked_items,
    concatenated,
    count_visits,
    words_from_bytes,
)

FORMAT = "mch-shards/1"
QUERIES_PER_CALL = 256
HEDGE_AFTER = 0.1  # seconds without an answer, after which another replica is asked too
SUSPECT_FOR = 5.0  # seconds during which a replica that failed is asked last
TIMEOUT = 60.0


def shard_of(item: Int[np.ndarray, " n"], num_shards: int) -> Int[np.ndarray, " n"]:
    """Returns the shard of each item, by a hash that spreads neighbours."""
    hashed = np.asarray(item).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return ((hashed >> np.uint64(32)) % np.uint64(num_shards)).astype(np.int64)


# Files -----------------------------------------------------------------------------------------


class Shards:
    """The files of a sharded index: one saved `BucketIndex` a shard, and how many there are.

    Any number of processes may read and change them; changes wait for each other.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory = Path(directory).absolute()
        path = self.directory / "shards.json"
        try:
            meta = json.loads(path.read_text())
            self.num_bits, self.num_shards = int(meta["num_bits"]), int(meta["shards"])
            sound = meta["format"] == FORMAT and self.num_shards > 0
        except OSError as error:
            raise ValueError(
                f"{path}: {error.strerror}; expected the shards that --codes=FILE makes"
            ) from None
        except (ValueError, TypeError, LookupError):
            sound = False
        if not sound:
            raise ValueError(f"{path} is damaged or not of format {FORMAT}; make the shards again")
        self._indexes: dict[int, BucketIndex] = {}

    @classmethod
    def build(
        cls,
        codes: UInt8[np.ndarray, "c bytes"],
        item: Int[np.ndarray, " c"],
        num_bits: int,
        directory: str | os.PathLike,
        num_shards: int,
    ) -> "Shards":
        """Writes the shards of codes and their items; the directory counts once all are there.

        Raises:
          ValueError: there are shards already, or the codes do not fit; see `BucketIndex.build`.
        """
        directory = Path(directory)
        if (directory / "shards.json").exists():
            raise ValueError(f"{directory} holds shards already; use another directory")
        directory.mkdir(parents=True, exist_ok=True)
        BucketIndex.build(codes[:0], item[:0], num_bits)  # refuses wrong arguments first
        shard = shard_of(item, num_shards)
        for number in range(num_shards):
            own = shard == number
            BucketIndex.build(codes[own], item[own], num_bits).save(directory / _name(number))
        meta = {"format": FORMAT, "num_bits": int(num_bits), "shards": num_shards}
        write_json(directory / "shards.json", meta)
        return cls(directory)

    def place(self, shard: int) -> Path:
        """Returns the directory of a shard."""
        return self.directory / _name(shard)

    def versions(self) -> list[str]:
        """Returns the version of every shard's files."""
        return [BucketIndex.version_of(self.place(shard)) for shard in range(self.num_shards)]

    def change(self, shard: int, change: Callable[[BucketIndex], None]) -> str:
        """Makes a change to a shard's files, to the disk, and returns the version after it."""
        with self._locked(shard):
            index = self._indexes.get(shard)
            if index is None or index.version != BucketIndex.version_of(self.place(shard)):
                index = BucketIndex.open(self.place(shard), like=index)
            self._indexes.pop(shard, None)  # should the change fail, its half is forgotten
            change(index)
            index.save(self.place(shard))
            self._indexes[shard] = index
            return index.version or ""

    @contextlib.contextmanager
    def _locked(self, shard: int) -> Iterator[None]:
        with open(self.directory / f"{_name(shard)}.lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _name(shard: int) -> str:
    return f"shard-{shard:04d}"


# One replica -------------------------------------------------------------------------------------


class Replica:
    """Serves one shard from its files. Each answer comes with the version that it holds for."""

    def __init__(self, directory: str | os.PathLike):
        self._directory = Path(directory)
        self._lock = threading.Lock()
        self._index = BucketIndex.open(directory)
        query = np.zeros((1, -(-self._index.num_bits // 8)), np.uint8)
        self.search(None, query, 1)  # compiles

    def _at(self, version: str | None) -> BucketIndex:
        """Returns the index in a version, or in the newest one where it has another."""
        with self._lock:
            if version not in (None, self._index.version):
                newest = BucketIndex.version_of(self._directory)
                if newest != self._index.version:
                    self._index = BucketIndex.open(self._directory, like=self._index)
            return self._index

    def search(self, version: str | None, queries: np.ndarray, k: int) -> tuple:
        """Returns the version, and item, distance and visits of the k nearest."""
        index = self._at(version)
        hits = index.search(queries, k)
        short = hits.item[:, -1] < 0
        radius = np.where(short, index.num_bits, hits.distance[:, -1])
        return index.version, hits.item, hits.distance, *index.visits(queries, k, radius)

    def within(self, version: str | None, queries: np.ndarray, radius: int) -> tuple:
        """Returns the version, and the items and the non-empty buckets within a radius."""
        index = self._at(version)
        ball = index.within(queries, radius)
        reach = np.full(len(queries), min(radius, index.num_bits))
        visits = index.visits(queries, None, reach)
        return index.version, ball.offsets, ball.item, ball.distance, visits.offsets, visits.mask

    def sizes(self, version: str | None) -> tuple:
        """Returns the version and the numbers of items, codes and bytes."""
        index = self._at(version)
        return index.version, len(index), index.num_codes, index.nbytes


# Merging answers ---------------------------------------------------------------------------------


def merge_hits(parts: Sequence[tuple], k: int, num_bits: int) -> NearestItems:
    """Returns the hits of one index from those of its shards.

    Args:
      parts: item, distance and visits of each shard, as `Replica.search` returns them.
      k: how many items.
      num_bits: q.
    """
    items = np.concatenate([item for item, *_ in parts], 1)
    distances = np.concatenate([distance for _, distance, *_ in parts], 1)
    far = np.where(items < 0, np.iinfo(np.int32).max, distances)
    order = np.lexsort((items, far), axis=1)[:, :k]
    item, distance = (np.take_along_axis(array, order, 1) for array in (items, distances))
    probed, nonempty = [], np.zeros(len(item), np.int64)
    for m in range(len(item)):
        masks, fresh = [], []
        for _, _, offsets, mask, new in parts:
            part = slice(offsets[m], offsets[m + 1])
            masks.append(mask[part])
            fresh.append(new[part])
        count, nonempty[m] = count_visits(np.concatenate(masks), np.concatenate(fresh), k, num_bits)
        probed.append(count)
    fits = max(probed, default=0) < 1 << 63
    return NearestItems(item, distance, np.array(probed, np.int64 if fits else object), nonempty)


def merge_balls(parts: Sequence[tuple]) -> ItemsWithin:
    """Returns the ball of one index from those of its shards, as `Replica.within` returns them."""
    num_queries = len(parts[0][0]) - 1
    offsets, nonempty = np.zeros(num_queries + 1, np.int64), np.zeros(num_queries, np.int64)
    items, distances = [], []
    for m in range(num_queries):
        slices = [slice(offset[m], offset[m + 1]) for offset, *_ in parts]
        item = np.concatenate([part[1][own] for part, own in zip(parts, slices, strict=True)])
        distance = np.concatenate([part[2][own] for part, own in zip(parts, slices, strict=True)])
        order = np.lexsort((item, distance))
        items.append(item[order])
        distances.append(distance[order])
        offsets[m + 1] = offsets[m] + len(item)
        masks = [part[4][part[3][m] : part[3][m + 1]] for part in parts]
        nonempty[m] = len(np.unique(np.concatenate(masks)))
    empty = np.empty(0, np.int64), np.empty(0, np.int32)
    return ItemsWithin(
        offsets,
        np.concatenate([empty[0], *items]),
        np.concatenate([empty[1], *distances]),
        nonempty,
    )


# Asking replicas ---------------------------------------------------------------------------------


class Call(NamedTuple):
    """A request to one replica and its answer to come."""

    replica: int
    future: Future


class Hedge:
    """Asks the replicas of a shard: one, and if it is slow or fails, the others too.

    The first answer counts. A replica that failed or was overtaken is asked last for a while.
    """

    def __init__(
        self,
        replicas: Sequence[Callable[..., Future]],
        hedge_after: float = HEDGE_AFTER,
        timeout: float = TIMEOUT,
    ):
        self._replicas = list(replicas)
        self._hedge_after, self._timeout = hedge_after, timeout
        self._suspect_until = [0.0] * len(self._replicas)
        self._turn = 0

    def ask(self, method: str, *arguments: Any) -> Any:
        """Returns the answer of the replica that is first to give one.

        One at least is asked, however late it is by then.

        Raises:
          ConnectionError: no replica answered in time; the message holds the last failure.
        """
        deadline, failure = time.monotonic() + self._timeout, None
        calls: list[Call] = []
        order = self._order()
        while True:
            if not order and not calls:  # all failed: they may be starting again
                time.sleep(self._hedge_after)
                order = self._order()
            if order:
                replica = order.pop(0)
                calls.append(Call(replica, self._replicas[replica](method, *arguments)))
            patience = self._hedge_after if order else deadline - time.monotonic()
            wait([call.future for call in calls], max(patience, 0), FIRST_COMPLETED)
            for call in [call for call in calls if call.future.done()]:
                calls.remove(call)
                failure = call.future.exception()
                if failure is None:
                    for slow in calls:
                        self._suspect(slow.replica)
                    self._suspect_until[call.replica] = 0.0
                    return call.future.result()
                if isinstance(failure, ValueError):  # of the question or the files, not the replica
                    raise failure
                self._suspect(call.replica)
            if time.monotonic() >= deadline:
                raise ConnectionError(
                    f"no replica answered in {self._timeout:.0f} s; last: {failure}"
                )

    def _order(self) -> list[int]:
        """Returns the replicas, in turns; those that failed lately last."""
        count, self._turn = len(self._replicas), self._turn + 1
        turns = [(self._turn + i) % count for i in range(count)]
        now = time.monotonic()
        return sorted(turns, key=lambda replica: self._suspect_until[replica] > now)

    def _suspect(self, replica: int) -> None:
        self._suspect_until[replica] = time.monotonic() + SUSPECT_FOR


class ShardedIndex:
    """The API of `BucketIndex` over replicated shards; same answers in the same order.

    A change is made when the call returns: it is in the files, and every later answer to this
    client has it. Another client sees it from its next call on a replica that has it. A search
    beside a change of several shards may find some before it and others after it.
    """

    def __init__(
        self,
        shards: Shards,
        replicas: Sequence[Sequence[Callable[..., Future]]],
        hedge_after: float = HEDGE_AFTER,
        timeout: float = TIMEOUT,
    ):
        """Takes for each shard its replicas: each a function of a method and its arguments."""
        self.num_bits = shards.num_bits
        self._shards = shards
        self._hedges = [Hedge(own, hedge_after, timeout) for own in replicas]
        self._replicas = replicas
        self._versions, self._lock = shards.versions(), threading.Lock()
        self._pool = ThreadPoolExecutor(4 * shards.num_shards, thread_name_prefix="shards")

    def wait(self) -> None:
        """Returns once every replica answers."""
        answers = [replica("sizes", None) for own in self._replicas for replica in own]
        for answer in answers:
            answer.result()

    def __len__(self) -> int:
        """Returns the number of distinct items."""
        return sum(size for size, _, _ in self._ask_all("sizes"))

    @property
    def num_codes(self) -> int:
        """Number of (code, item) pairs, removed ones too until the next merge."""
        return sum(codes for _, codes, _ in self._ask_all("sizes"))

    @property
    def nbytes(self) -> int:
        """Bytes of the files, one copy."""
        return sum(size for _, _, size in self._ask_all("sizes"))

    def search(self, query_codes: UInt8[np.ndarray, "m bytes"], k: int) -> NearestItems:
        """Returns the k nearest items of each query and Algorithm 1's counts."""
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        chunks = self._in_chunks("search", query_codes, k)
        hits = [merge_hits(parts, k, self.num_bits) for parts in chunks]
        return (
            hits[0]
            if len(hits) == 1
            else NearestItems(*map(np.concatenate, zip(*hits, strict=True)))
        )

    def within(self, query_codes: UInt8[np.ndarray, "m bytes"], radius: int) -> ItemsWithin:
        """Returns every item within `radius` bits of each query, nearest first."""
        if radius < 0:
            raise ValueError(f"radius is {radius}, expected at least 0")
        chunks = self._in_chunks("within", query_codes, radius)
        return concatenated([merge_balls(parts) for parts in chunks])

    def add(self, codes: UInt8[np.ndarray, "c bytes"], item: Int[np.ndarray, " c"]) -> None:
        """Adds codes; an item that exists already gets them besides those it has."""
        words_from_bytes(codes, self.num_bits)  # all of a wrong call is refused, or nothing
        checked_items(item, len(codes))
        shard = shard_of(item, self._shards.num_shards)

        def change(number: int):
            own = shard == number
            return lambda index: index.add(codes[own], item[own])

        self._change(np.unique(shard).tolist(), change)

    def remove(self, item: int | Int[np.ndarray, " n"]) -> None:
        """Removes items with all their codes; those that are not there make no difference."""
        item = np.atleast_1d(item)
        checked_items(item)
        shard = shard_of(item, self._shards.num_shards)

        def change(number: int):
            return lambda index: index.remove(item[shard == number])

        self._change(np.unique(shard).tolist(), change)

    def merge(self) -> None:
        """Makes additions and removals part of every shard's base."""
        self._change(list(range(self._shards.num_shards)), lambda _: BucketIndex.merge)

    def _change(self, numbers: list[int], change: Callable[[int], Callable]) -> None:
        def make(number: int):
            version = self._shards.change(number, change(number))
            with self._lock:
                self._versions[number] = version
            for replica in self._replicas[number]:  # nobody waits: the next request would do too
                replica("sizes", version)

        list(self._pool.map(make, numbers))

    def _in_chunks(self, method: str, queries: np.ndarray, argument: int) -> list[list[tuple]]:
        starts = range(0, max(len(queries), 1), QUERIES_PER_CALL)
        chunks = [queries[start : start + QUERIES_PER_CALL] for start in starts]
        futures = [
            [self._pool.submit(self._ask, number, method, chunk, argument)
             for number in range(self._shards.num_shards)]
            for chunk in chunks
        ]  # fmt: skip
        return [[future.result() for future in row] for row in futures]

    def _ask_all(self, method: str) -> list[tuple]:
        numbers = range(self._shards.num_shards)
        return list(self._pool.map(lambda number: self._ask(number, method), numbers))

    def _ask(self, number: int, method: str, *arguments: Any) -> tuple:
        wanted = self._versions[number]
        version, *answer = self._hedges[number].ask(method, wanted, *arguments)
        with self._lock:
            if self._versions[number] == wanted:  # else this client has made a change meanwhile
                self._versions[number] = version
        return tuple(answer)


# Ray --------------------------------------------------------------------------------------------


def connect(
    directory: str | os.PathLike,
    replicas: int = 2,
    address: str = "auto",
    *,
    num_cpus: float = 1,
    hedge_after: float = HEDGE_AFTER,
    timeout: float = TIMEOUT,
) -> ShardedIndex:
    """Returns the index of a directory of shards, served by a Ray cluster.

    Replicas that don't run yet are started, each shard's on different nodes, and outlive this
    process; one whose process or node dies is started again, elsewhere if need be.

    Args:
      directory: of the shards, on storage that every node sees under this path.
      replicas: of each shard; as many nodes are needed.
      address: of the Ray cluster; not used where this process is connected already.
      num_cpus: cores that Ray reserves for a replica.
      hedge_after: seconds without an answer, after which another replica is asked too.
      timeout: seconds after which a request fails.

    Raises:
      ValueError: there are no shards, no Ray, no cluster, or too few nodes.
    """
    shards = Shards(directory)
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.util import get_placement_group, placement_group  # pyright: ignore[reportMissingImports]
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("ray is not installed; run pip install 'mch_jax[cluster]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address, namespace="mch_jax", log_to_driver=False, logging_level="ERROR")
        except ConnectionError as error:
            raise ValueError(f"no Ray cluster at {address} ({error}); run ray start") from None
    nodes = sum(node["Alive"] for node in ray.nodes())
    if replicas > nodes:
        raise ValueError(
            f"{replicas} replicas need as many nodes, the Ray cluster has {nodes}; "
            "start more or ask for fewer replicas"
        )

    def group(shard: int):
        name = f"{shards.place(shard)} x {replicas}"
        try:
            return get_placement_group(name)
        except ValueError:
            return placement_group(
                [{"CPU": num_cpus}] * replicas, "STRICT_SPREAD", name, lifetime="detached"
            )

    def start(shard: int, replica: int) -> Callable[..., Future]:
        actor = (
            ray.remote(Replica)
            .options(
                name=f"{shards.place(shard)} {replica}",
                namespace="mch_jax",
                get_if_exists=True,
                lifetime="detached",
                max_restarts=-1,
                max_concurrency=4,
                num_cpus=num_cpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(groups[shard], replica),
            )
            .remote(str(shards.place(shard)))
        )
        return lambda method, *arguments: getattr(actor, method).remote(*arguments).future()

    groups = [group(shard) for shard in range(shards.num_shards)]
    started = [
        [start(shard, replica) for replica in range(replicas)] for shard in range(shards.num_shards)
    ]
    return ShardedIndex(shards, started, hedge_after, timeout)


def stop(directory: str | os.PathLike, replicas: int = 2) -> None:
    """Stops the replicas of a directory of shards; this process has to be connected."""
    import ray  # pyright: ignore[reportMissingImports]
    from ray.util import get_placement_group, remove_placement_group  # pyright: ignore[reportMissingImports]

    shards = Shards(directory)
    for shard in range(shards.num_shards):
        for replica in range(replicas):
            with contextlib.suppress(ValueError):
                name = f"{shards.place(shard)} {replica}"
                ray.kill(ray.get_actor(name, "mch_jax"), no_restart=True)
        with contextlib.suppress(ValueError):
            remove_placement_group(get_placement_group(f"{shards.place(shard)} x {replicas}"))
