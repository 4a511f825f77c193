"""Limits of a service, and the error of a request beyond them."""

import os
from typing import NamedTuple

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Limits(NamedTuple):
    """Limits on requests and connections.

    Attributes:
      pending: Maximum number of requests that are being answered or wait. An answer that is being
        sent no longer counts.
      upload_bytes: Maximum size of one request's body.
      pending_bytes: Maximum size of all pending requests' bodies together. Bodies of more than
        1 MiB may take half of it, so that slow senders of large bodies leave room for others.
      pixels: Maximum number of pixels of a photo.
      body_seconds: Maximum time until a body has arrived.
      discarded_bytes: Maximum number of bytes of a refused body that are read and discarded.
      decoders: Number of processes that decode uploaded photos.
      decode_seconds: Maximum time for decoding one photo, and for waiting until a process is free.
      decode_bytes: Maximum memory of each of these processes, beside what it has when it starts.
      connections: Maximum number of connections, further limited to half of the descriptors that
        the process may open. When all are in use, a new one replaces the one that has waited
        longest without a request.
      header_seconds: Maximum time until the header of a connection's next request has arrived.
      header_bytes: Maximum size of a request's header.
      send_seconds: Maximum time that a connection may be blocked because its client does not read.
      stop_seconds: The same while the service stops.
      hosts: Hosts that a request may name in its header Host, without port; "*" allows any.
    """

    pending: int = 128
    upload_bytes: int = 16 * 2**20
    pending_bytes: int = 256 * 2**20
    pixels: int = 50_000_000
    body_seconds: float = 30.0
    discarded_bytes: int = 64 * 2**20
    decoders: int = max(2, min(4, os.cpu_count() or 1))
    decode_seconds: float = 10.0
    decode_bytes: int = 2**30
    connections: int = 512
    header_seconds: float = 20.0
    header_bytes: int = 64 * 2**10
    send_seconds: float = 20.0
    stop_seconds: float = 5.0
    hosts: tuple[str, ...] = LOOPBACK


class Refused(Exception):
    """Raised when a request is refused.

    Args:
      status: HTTP status of the answer.
      reason: One sentence for the client.
      retry_after: Seconds after which the client may try again.
    """

    def __init__(self, status: int, reason: str, retry_after: int | None = None):
        super().__init__(reason)
        self.status, self.reason = status, reason
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


def busy() -> Refused:
    """Returns the refusal of a request that the service has no room for."""
    return Refused(503, "The server is busy; try again in a second.", retry_after=1)
