"""The HTTP server of a service: uvicorn, with limits on connections.

A client that sends nothing, half a header or a header without end, or that does not read its
answers, costs a descriptor for a limited time, and never keeps others from connecting.
"""

import asyncio
import math
import sys
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from mch_jax.serving import api
from mch_jax.serving.limits import Limits
from mch_jax.serving.service import Service

_BACKLOG = 128  # connections that the system accepts before the server does
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: 56\r\n\r\n"
    b'{"error":"The server is busy; try again in a second."}\r\n'
)
_Protocol = cast(Any, HttpToolsProtocol)  # its attributes are not declared for subclasses


def create(service: Service) -> uvicorn.Server:
    """Returns the server of a service. Its limits are those of the service."""
    config = uvicorn.Config(
        api.create_app(service),
        http=_limited(service.limits),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=math.ceil(service.limits.header_seconds),
        timeout_graceful_shutdown=60,
    )
    return uvicorn.Server(config)


def _max_connections(limits: Limits) -> int:
    """Returns the number of connections that this process has descriptors for."""
    if sys.platform == "win32":
        return limits.connections
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limits.connections if soft < 0 else max(1, min(limits.connections, soft // 2))


def _limited(limits: Limits) -> type[asyncio.Protocol]:
    """Returns uvicorn's protocol with limits on connections."""
    max_connections = _max_connections(limits)
    waiting: dict[Any, None] = {}  # for a request, the longest-waiting one first

    class Connection(_Protocol):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self._header_timer: Any = None
            self._send_timer: Any = None
            self._num_header_bytes = 0
            self._is_stopping = False
            self._answered: Any = None  # the request being answered; `cycle` is the one read last

        @property
        def _is_answering(self) -> bool:
            return self._answered is not None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                longest = next(iter(waiting), None)
                if longest is None:
                    transport.write(_FULL)
                    transport.close()
                    return
                del waiting[longest]
                longest.transport.abort()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._answered is not None:  # uvicorn tells only `cycle`
                self._answered.disconnected = True
                self._answered.message_event.set()
            waiting.pop(self, None)
            for timer in (self._header_timer, self._send_timer):
                if timer is not None:
                    timer.cancel()

        def _wait(self) -> None:
            """Begins to wait for the header of the next request."""
            if self._header_timer is not None:
                self._header_timer.cancel()
            self._num_header_bytes = 0
            waiting.pop(self, None)
            waiting[self] = None
            seconds = limits.stop_seconds if self._is_stopping else limits.header_seconds
            self._header_timer = self._abort_later(seconds)

        def data_received(self, data: bytes) -> None:
            cycle = self.cycle
            is_header = not self._is_answering or not cycle.more_body
            super().data_received(data)
            if self.cycle is not cycle:
                self._num_header_bytes = 0
            elif is_header:
                self._num_header_bytes += len(data)
                if self._num_header_bytes > limits.header_bytes:
                    self.transport.abort()
            if self._is_answering and self._header_timer is not None:
                waiting.pop(self, None)
                self._header_timer.cancel()
                self._header_timer = None

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            if not self.pipeline:
                self._answered = self.cycle

        def on_response_complete(self) -> None:
            if self.transport.is_closing():
                self.pipeline.clear()  # no further request is answered
            self._answered = self.pipeline[-1][0] if self.pipeline else None
            super().on_response_complete()
            if not self._is_answering:
                self._wait()  # also where the connection closes once the answer has been read

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._send_timer is None:
                seconds = limits.stop_seconds if self._is_stopping else limits.send_seconds
                self._send_timer = self._abort_later(seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._send_timer is not None:
                self._send_timer.cancel()
                self._send_timer = None

        def shutdown(self) -> None:
            self._is_stopping = True
            self.pipeline.clear()  # requests that were read, but not begun
            if self._answered is not None:
                self._answered.keep_alive = False
            super().shutdown()
            if self._send_timer is not None or not self._is_answering:
                self._abort_later(limits.stop_seconds)

        def _abort_later(self, seconds: float) -> Any:
            return self.loop.call_later(seconds, self.transport.abort)

    return cast(type[asyncio.Protocol], Connection)
