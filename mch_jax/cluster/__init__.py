"""The bucket index on several machines: shards in files, served by replicas on a Ray cluster.

All codes of an item are in one shard, which is chosen by a hash of the item. A shard can therefore
answer for its items alone, and the answers of all shards are merged into the answer that one index
with all codes would give, including the counts.

The files of the shards, on storage that all machines share, are the only lasting state. A change is
written to them, and a replica holds nothing but a copy in memory. Each request states the version
of the shard that it expects. A replica with another version, for example because it was down when a
change was made, reads the files before it answers.

| module | holds |
| --- | --- |
| `shards` | `Shards`: the files |
| `replica` | `Replica`: serves the files of one shard |
| `merge` | merges the answers of the shards |
| `client` | `ReplicaGroup`: calls the replicas of one shard; `ShardedIndex`: calls all shards |
| `actors` | `connect` and `stop`: replicas as Ray actors; the only module that imports Ray |

`python -m mch_jax.cluster` writes shards and starts their replicas.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from mch_jax.cluster.actors import connect, stop
    from mch_jax.cluster.client import ReplicaGroup, ShardedIndex
    from mch_jax.cluster.merge import merge_nearest, merge_within
    from mch_jax.cluster.replica import Replica
    from mch_jax.cluster.shards import FORMAT, Shards, shard_of

_MODULES = {
    "actors": ("connect", "stop"),
    "client": ("ReplicaGroup", "ShardedIndex"),
    "merge": ("merge_nearest", "merge_within"),
    "replica": ("Replica",),
    "shards": ("FORMAT", "Shards", "shard_of"),
}

__all__ = [
    "FORMAT",
    "Replica",
    "ReplicaGroup",
    "ShardedIndex",
    "Shards",
    "connect",
    "merge_nearest",
    "merge_within",
    "shard_of",
    "stop",
]


def __getattr__(name: str) -> typing.Any:
    """Imports what is used on first use; the help of the command does not wait for the index."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
