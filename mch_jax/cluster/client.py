"""The client of a sharded index: calls replicas, repeats calls that are late, merges the answers.

This module knows a replica only as a function that takes the name of a method of `Replica` and its
arguments and returns a future, so that it works with processes of any kind.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from mch_jax.cluster.merge import merge_nearest, merge_within
from mch_jax.cluster.replica import Answer, Sizes
from mch_jax.cluster.shards import Shards, shard_of
from mch_jax.index import (
    BucketIndex,
    ItemsWithin,
    NearestItems,
    checked_items,
    concatenated,
    words_from_bytes,
)

QUERIES_PER_CALL = 256
HEDGE_AFTER = 0.1  # seconds without an answer after which another replica is called, too
SUSPECT_FOR = 5.0  # seconds during which a replica that failed is called last
TIMEOUT = 60.0

CallReplica = Callable[..., Future]  # takes the name of a method of `Replica`, and its arguments


class _Call(NamedTuple):
    """A call that has not been answered yet."""

    replica: int
    future: Future


class ReplicaGroup:
    """The replicas of one shard, called one after another until one answers (hedged requests).

    A call goes to one replica. If that replica fails, or has not answered after a while, the call
    is repeated on the next one, and the first answer is used. A replica that failed, or was slower
    than another one, is called last for SUSPECT_FOR seconds.

    Args:
      replicas: Calls each of the replicas.
      hedge_after: Seconds without an answer after which another replica is called, too.
      timeout: Seconds after which a call fails.
    """

    def __init__(
        self,
        replicas: Sequence[CallReplica],
        hedge_after: float = HEDGE_AFTER,
        timeout: float = TIMEOUT,
    ):
        self._replicas = list(replicas)
        self._hedge_after, self._timeout = hedge_after, timeout
        self._suspect_until = [0.0] * len(self._replicas)
        self._num_calls = 0

    def call(self, method: str, *arguments: Any) -> Any:
        """Returns the first answer of a replica.

        At least one replica is called, even with a timeout of 0.

        Raises:
          ValueError: The arguments or the shard's files are wrong, so that no replica can answer.
          ConnectionError: No replica answered in time; the message contains the last failure.
        """
        deadline, failure = time.monotonic() + self._timeout, None
        calls: list[_Call] = []
        remaining = self._order()
        while True:
            if not remaining and not calls:  # all of them failed; they may be starting again
                time.sleep(self._hedge_after)
                remaining = self._order()
            if remaining:
                replica = remaining.pop(0)
                calls.append(_Call(replica, self._replicas[replica](method, *arguments)))
            patience = self._hedge_after if remaining else deadline - time.monotonic()
            wait([call.future for call in calls], max(patience, 0), FIRST_COMPLETED)
            for call in [call for call in calls if call.future.done()]:
                calls.remove(call)
                failure = call.future.exception()
                if failure is None:
                    for slower in calls:
                        self._suspect(slower.replica)
                    self._suspect_until[call.replica] = 0.0
                    return call.future.result()
                if isinstance(failure, ValueError):  # the other replicas would fail, too
                    raise failure
                self._suspect(call.replica)
            if time.monotonic() >= deadline:
                raise ConnectionError(
                    f"no replica answered in {self._timeout:.0f} s; last: {failure}"
                )

    def _order(self) -> list[int]:
        """Returns the replicas in the order of calling: in turns, suspects last."""
        count, self._num_calls = len(self._replicas), self._num_calls + 1
        in_turns = [(self._num_calls + i) % count for i in range(count)]
        now = time.monotonic()
        return sorted(in_turns, key=lambda replica: self._suspect_until[replica] > now)

    def _suspect(self, replica: int) -> None:
        self._suspect_until[replica] = time.monotonic() + SUSPECT_FOR


class ShardedIndex:
    """An index in replicated shards, with the methods and the answers of `BucketIndex`.

    A change is complete when the call returns: it is in the files, and all later answers to this
    client include it. The answers to another client include it from its first call on that reaches
    a replica with the new version. A search that runs during a change of several shards may see the
    new version of some shards and the old version of others.

    Attributes:
      num_bits: The code length.
    """

    def __init__(
        self,
        shards: Shards,
        replicas: Sequence[Sequence[CallReplica]],
        hedge_after: float = HEDGE_AFTER,
        timeout: float = TIMEOUT,
    ):
        """Creates a client.

        Args:
          shards: The files.
          replicas: For each shard, the functions that call its replicas.
          hedge_after: Seconds without an answer after which another replica is called, too.
          timeout: Seconds after which a call fails.
        """
        self.num_bits = shards.num_bits
        self._shards = shards
        self._groups = [ReplicaGroup(own, hedge_after, timeout) for own in replicas]
        self._replicas = replicas
        self._versions, self._lock = shards.versions(), threading.Lock()
        self._pool = ThreadPoolExecutor(4 * shards.num_shards, thread_name_prefix="shards")

    def wait(self) -> None:
        """Waits until every replica has answered once."""
        answers = [replica("sizes", None) for own in self._replicas for replica in own]
        for answer in answers:
            answer.result()

    def __len__(self) -> int:
        """Returns the number of distinct items."""
        return sum(sizes.items for sizes in self._sizes())

    @property
    def num_codes(self) -> int:
        """Number of (code, item) pairs, including removed ones until the next merge."""
        return sum(sizes.codes for sizes in self._sizes())

    @property
    def nbytes(self) -> int:
        """Size of all shards in bytes, without replication."""
        return sum(sizes.nbytes for sizes in self._sizes())

    def search(self, query_codes: UInt8[np.ndarray, "m bytes"], k: int) -> NearestItems:
        """Returns the k nearest items of each query and the counts of Algorithm 1."""
        if k < 1:
            raise ValueError(f"k is {k}, expected at least 1")
        batches = self._call_in_batches("search", query_codes, k)
        found = [merge_nearest(shards, self.num_bits) for shards in batches]
        if len(found) == 1:
            return found[0]
        return NearestItems(*map(np.concatenate, zip(*found, strict=True)))

    def within(self, query_codes: UInt8[np.ndarray, "m bytes"], radius: int) -> ItemsWithin:
        """Returns all items within `radius` bits of each query, nearest first."""
        if radius < 0:
            raise ValueError(f"radius is {radius}, expected at least 0")
        batches = self._call_in_batches("within", query_codes, radius)
        return concatenated([merge_within(shards) for shards in batches])

    def add(self, codes: UInt8[np.ndarray, "c bytes"], item: Int[np.ndarray, " c"]) -> None:
        """Adds codes. An item that exists already keeps its other codes.

        Raises:
          ValueError: The codes or items are not valid; nothing has been added then.
        """
        words_from_bytes(codes, self.num_bits)  # checks all shards' codes before any is changed
        checked_items(item, len(codes))
        shard = shard_of(item, self._shards.num_shards)

        def add_own(number: int) -> Callable[[BucketIndex], None]:
            is_own = shard == number
            return lambda index: index.add(codes[is_own], item[is_own])

        self._change(np.unique(shard).tolist(), add_own)

    def remove(self, item: int | Int[np.ndarray, " n"]) -> None:
        """Removes items with all their codes; items that do not exist are ignored.

        Raises:
          ValueError: The items are not valid; nothing has been removed then.
        """
        item = np.atleast_1d(item)
        checked_items(item)
        shard = shard_of(item, self._shards.num_shards)

        def remove_own(number: int) -> Callable[[BucketIndex], None]:
            return lambda index: index.remove(item[shard == number])

        self._change(np.unique(shard).tolist(), remove_own)

    def merge(self) -> None:
        """Merges the additions and removals of every shard into its base."""
        self._change(list(range(self._shards.num_shards)), lambda _: BucketIndex.merge)

    def _change(
        self, numbers: list[int], change: Callable[[int], Callable[[BucketIndex], None]]
    ) -> None:
        """Changes the files of some shards, and tells their replicas."""

        def change_one(number: int) -> None:
            version = self._shards.change(number, change(number))
            with self._lock:
                self._versions[number] = version
            for replica in self._replicas[number]:
                # Makes the replica read the files now. The answer is not needed: otherwise the next
                # request, which states this version, has the same effect.
                replica("sizes", version)

        list(self._pool.map(change_one, numbers))

    def _call_in_batches(self, method: str, queries: np.ndarray, argument: int) -> list[list[Any]]:
        """Returns the answer of each shard to each batch of queries; all are called at once."""
        starts = range(0, max(len(queries), 1), QUERIES_PER_CALL)
        batches = [queries[start : start + QUERIES_PER_CALL] for start in starts]
        futures = [
            [self._pool.submit(self._call, number, method, batch, argument)
             for number in range(self._shards.num_shards)]
            for batch in batches
        ]  # fmt: skip
        return [[future.result() for future in row] for row in futures]

    def _sizes(self) -> list[Sizes]:
        numbers = range(self._shards.num_shards)
        return list(self._pool.map(lambda number: self._call(number, "sizes"), numbers))

    def _call(self, number: int, method: str, *arguments: Any) -> Any:
        """Returns a shard's answer and notes the version that it holds for."""
        expected = self._versions[number]
        answer: Answer = self._groups[number].call(method, expected, *arguments)
        with self._lock:
            if self._versions[number] == expected:  # not if this client has changed it meanwhile
                self._versions[number] = answer.version
        return answer.value
