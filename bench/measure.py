"""Measures times of alternating calls and peak memory, and makes rows of the table."""

import contextlib
import ctypes
import dataclasses
import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mch_jax import machine


@dataclasses.dataclass
class Row:
    """One line of the table.

    Attributes:
      bench: What is measured.
      threads: Number of cores that the process may use.
      unit: Unit of `rate`.
      rate: Work per second of wall-clock time, the median over rounds.
      low: Rate of the slowest round.
      high: Rate of the fastest round.
      peer: What it is compared with; empty without a peer.
      peer_rate: Rate of the peer, measured in alternation with ours.
      ratio: rate / peer_rate, by CPU time on one thread, by wall-clock time on several.
      target: Target of `ratio` or `rate`; empty without a target.
      met: Whether the target is met; None without a target.
      limit: The limit of the machine, as text.
      share: `rate` as a fraction of the limit.
      memory_mb: Peak memory in addition to the inputs.
      peer_memory_mb: The same for the peer.
      note: Remarks, such as why a target is missed.
      load: Load average of the machine at the end. Above `threads`, other processes were running.
    """

    bench: str
    threads: int
    unit: str
    rate: float
    low: float
    high: float
    peer: str = ""
    peer_rate: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    limit: str = ""
    share: float | None = None
    memory_mb: float | None = None
    peer_memory_mb: float | None = None
    note: str = ""
    load: float = dataclasses.field(default_factory=lambda: os.getloadavg()[0])


@dataclasses.dataclass
class Timing:
    """Seconds of each round, of wall-clock time and of CPU time over all threads."""

    wall: list[float]
    cpu: list[float]

    @property
    def seconds(self) -> float:
        """The median of the wall-clock times."""
        return statistics.median(self.wall)


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Timing]:
    """Returns the times of calls that alternate, after one call of each to warm up."""
    spent = {name: Timing([], []) for name in calls}
    for call in calls.values():
        ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            ready(call())
            spent[name].wall.append(time.perf_counter() - wall)
            spent[name].cpu.append(time.process_time() - cpu)
    return spent


def ready(result: Any) -> None:
    """Waits until a result is computed."""
    import jax

    jax.block_until_ready(result)


def row(
    bench: str,
    work: float,
    unit: str,
    timings: Mapping[str, Timing],
    *,
    ours: str = "ours",
    peer: str = "",
    peer_work: float | None = None,
    least: float | None = None,
    limit: tuple[str, float] | None = None,
    **rest: Any,
) -> Row:
    """Returns a row from the times that `interleaved` returned.

    Args:
      bench: What is measured.
      work: Work of one call, in units.
      unit: Unit of the rate.
      timings: Times by name; must contain `ours`.
      ours: Name of our call.
      peer: Name of the peer's call. Without times of this name, the row has no ratio.
      peer_work: Work of one call of the peer. Defaults to `work`.
      least: Target of the ratio.
      limit: Name of a limit of the machine, and the rate that it allows.
      rest: Further fields of the row.
    """
    mine = timings[ours]
    result = Row(
        bench, num_threads(), unit, work / mine.seconds, work / max(mine.wall),
        work / min(mine.wall), **rest,
    )  # fmt: skip
    if peer in timings:
        other = timings[peer]
        share = (peer_work or work) / work
        one = num_threads() == 1
        spent, theirs = (statistics.median(x.cpu if one else x.wall) for x in (mine, other))
        result.peer, result.peer_rate = peer, (peer_work or work) / other.seconds
        result.ratio = theirs / spent / share
        if least is not None:
            result.target, result.met = f">= {least:g} x", result.ratio >= least
    elif least is not None:
        result.target = f">= {least:g} x"
        result.peer = f"{peer or 'peer'} is not installed"
    if limit is not None:
        result.limit, result.share = f"{limit[0]}: {limit[1]:,.4g}", result.rate / limit[1]
    return result


def num_threads() -> int:
    """Returns the number of cores that this process may use."""
    return len(machine.cores())


def resident(field: str = "VmRSS") -> float:
    """Returns a field of /proc/self/status in MB (10^6 bytes)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024e-6 for x in lines if x.startswith(field + ":"))


def peak_memory(call: Callable[[], Any]) -> float:
    """Returns the peak growth of the process in MB during a call, after one call to warm up."""
    ready(call())
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory, which the call could reuse
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = resident()
    ready(call())
    return max(resident("VmHWM") - before, 0.0)


def torch_or_none() -> Any:
    """Returns PyTorch, set to this process's number of threads, or None if it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(num_threads())
    return torch


def faiss_or_none() -> Any:
    """Returns FAISS, set to this process's number of threads, or None if it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(num_threads())
    return faiss
