"""Counters and histograms of a service, for Prometheus."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Counters"]


class Counters:
    """The counters of one service, in a registry of their own."""

    def __init__(self):
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "mch_requests", "Answers by path and status.", ("path", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "mch_request_seconds", "Time to answer.", ("path",), registry=self._registry
        )
        self._batch = Histogram(
            "mch_batch_size", "Photos per call of the network.", ("kind",),
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=self._registry,
        )  # fmt: skip
        self._pending = Gauge(
            "mch_pending_requests", "Requests that are being answered or wait.",
            registry=self._registry,
        )  # fmt: skip

    def count_answer(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer and records how long it took."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def count_batch(self, kind: str, size: int) -> None:
        """Records the number of photos in one call of the network."""
        self._batch.labels(kind).observe(size)

    def text(self, pending: int) -> bytes:
        """Returns all counters in Prometheus' text format.

        Args:
          pending: The number of requests that are being answered or wait.
        """
        self._pending.set(pending)
        return generate_latest(self._registry)
