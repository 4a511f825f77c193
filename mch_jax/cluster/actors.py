"""Replicas as actors of a Ray cluster."""

import contextlib
import logging
import os
from concurrent.futures import Future

from mch_jax.cluster.client import HEDGE_AFTER, TIMEOUT, CallReplica, ShardedIndex
from mch_jax.cluster.replica import Replica
from mch_jax.cluster.shards import Shards

NAMESPACE = "mch_jax"


def connect(
    directory: str | os.PathLike,
    replicas: int = 2,
    address: str = "auto",
    *,
    num_cpus: float = 1,
    hedge_after: float = HEDGE_AFTER,
    timeout: float = TIMEOUT,
) -> ShardedIndex:
    """Returns the index in a directory of shards, served by a Ray cluster.

    Replicas that do not run yet are started, those of one shard on different nodes. They continue
    to run after this process ends. Ray restarts a replica whose process or node fails, on another
    node if necessary.

    Args:
      directory: The directory of the shards, at the same path on every node.
      replicas: Number of replicas per shard; the cluster needs at least as many nodes.
      address: Address of the Ray cluster; ignored if this process is connected already.
      num_cpus: Number of cores that Ray reserves for a replica.
      hedge_after: Seconds without an answer after which another replica is called, too.
      timeout: Seconds after which a call fails.

    Raises:
      ValueError: There are no shards, Ray is not installed, there is no cluster, or it has too few
        nodes.
    """
    shards = Shards(directory)
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("ray is not installed; run pip install 'mch_jax[cluster]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ValueError(f"no Ray cluster at {address} ({error}); run ray start") from None
    nodes = sum(node["Alive"] for node in ray.nodes())
    if replicas > nodes:
        raise ValueError(
            f"{replicas} replicas need as many nodes, the Ray cluster has {nodes}; "
            "start more or ask for fewer replicas"
        )

    def start(shard: int, replica: int, group) -> CallReplica:
        actor = (
            ray.remote(Replica)
            .options(
                name=_actor_name(shards, shard, replica),
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                max_restarts=-1,
                max_concurrency=4,
                num_cpus=num_cpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, replica),
            )
            .remote(str(shards.path(shard)))
        )

        def call(method: str, *arguments) -> Future:
            return getattr(actor, method).remote(*arguments).future()

        return call

    groups = [_node_group(shards, shard, replicas, num_cpus) for shard in range(shards.num_shards)]
    started = [
        [start(shard, replica, group) for replica in range(replicas)]
        for shard, group in enumerate(groups)
    ]
    return ShardedIndex(shards, started, hedge_after, timeout)


def stop(directory: str | os.PathLike, replicas: int = 2) -> None:
    """Stops the replicas of a directory of shards; this process must be connected to Ray.

    Args:
      directory: The directory of the shards.
      replicas: Number of replicas per shard, as `connect` was given.
    """
    import ray  # pyright: ignore[reportMissingImports]
    from ray.util import get_placement_group, remove_placement_group  # pyright: ignore[reportMissingImports]

    shards = Shards(directory)
    for shard in range(shards.num_shards):
        for replica in range(replicas):
            with contextlib.suppress(ValueError):  # it does not run
                actor = ray.get_actor(_actor_name(shards, shard, replica), NAMESPACE)
                ray.kill(actor, no_restart=True)
        with contextlib.suppress(ValueError):
            remove_placement_group(get_placement_group(_group_name(shards, shard, replicas)))


def _node_group(shards: Shards, shard: int, replicas: int, num_cpus: float):
    """Returns the placement group that puts the replicas of a shard on different nodes."""
    from ray.util import get_placement_group, placement_group  # pyright: ignore[reportMissingImports]

    name = _group_name(shards, shard, replicas)
    try:
        return get_placement_group(name)
    except ValueError:
        return placement_group(
            [{"CPU": num_cpus}] * replicas, "STRICT_SPREAD", name, lifetime="detached"
        )


def _actor_name(shards: Shards, shard: int, replica: int) -> str:
    return f"{shards.path(shard)} {replica}"


def _group_name(shards: Shards, shard: int, replicas: int) -> str:
    return f"{shards.path(shard)} x {replicas}"
