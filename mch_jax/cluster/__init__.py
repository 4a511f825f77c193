"""The bucket index as shards with replicas on several machines."""

from mch_jax.cluster.sharded import (
    FORMAT,
    HEDGE_AFTER,
    QUERIES_PER_CALL,
    SUSPECT_FOR,
    TIMEOUT,
    Call,
    Hedge,
    Replica,
    ShardedIndex,
    Shards,
    connect,
    merge_balls,
    merge_hits,
    shard_of,
    stop,
)

__all__ = [
    "Call",
    "FORMAT",
    "HEDGE_AFTER",
    "Hedge",
    "QUERIES_PER_CALL",
    "Replica",
    "SUSPECT_FOR",
    "ShardedIndex",
    "Shards",
    "TIMEOUT",
    "connect",
    "merge_balls",
    "merge_hits",
    "shard_of",
    "stop",
]
