"""Limits on requests, as ASGI middleware: how many at a time, and how large.

A request beyond the limits is refused with a status and one sentence. Its body is read and
discarded before the answer is sent, so that the client sees the answer, not a closed connection.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


class Limits(NamedTuple):
    """Limits on requests.

    Attributes:
      pending: Maximum number of requests that are being answered or wait.
      upload_bytes: Maximum size of one request's body.
      pending_bytes: Maximum size of all pending requests' bodies together.
      pixels: Maximum number of pixels of a photo.
      body_seconds: Maximum time until a body has arrived.
      discarded_bytes: Maximum number of bytes of a refused body that are read and discarded.
    """

    pending: int = 128
    upload_bytes: int = 16 * 2**20
    pending_bytes: int = 256 * 2**20
    pixels: int = 50_000_000
    body_seconds: float = 30.0
    discarded_bytes: int = 64 * 2**20


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


class Gate:
    """ASGI middleware that applies limits before the application sees a request's body.

    Args:
      app: The application.
      limits: Limits on requests.
      is_free: Returns True for paths that are never refused for being busy, such as a health check.
      on_answer: Called with the path template, the status and the seconds of every answer.

    Attributes:
      pending: Number of requests that are being answered or wait.
      pending_bytes: Size of their bodies together.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        is_free: Callable[[str], bool],
        on_answer: Callable[[str, int, float], Any],
    ):
        self._app, self._limits, self._is_free, self._on_answer = app, limits, is_free, on_answer
        self.pending = self.pending_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request to the application, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, body_stream = time.monotonic(), 500, _BodyStream(receive)

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            with self._admitted(scope) as max_bytes:
                body = await self._read(body_stream, max_bytes)
                if body is None:
                    status = 499  # the client has closed the connection
                else:
                    await self._app(scope, _replay(body, receive), send_and_note)
        except Refused as refused:
            await body_stream.discard(self._limits.discarded_bytes, self._limits.body_seconds)
            response = JSONResponse({"error": refused.reason}, refused.status, refused.headers)
            await response(scope, receive, send_and_note)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._on_answer(route, status, time.monotonic() - begin)

    @contextlib.contextmanager
    def _admitted(self, scope: Scope) -> Iterator[int]:
        """Counts a request as pending; yields the maximum size of its body in bytes.

        Raises:
          Refused: The body is too large, or too many requests are pending.
        """
        limits, declared = self._limits, dict(scope["headers"]).get(b"content-length")
        size = int(declared) if declared and declared.isdigit() else None
        if size is None:  # a body of unknown size is counted at the largest possible size
            size = limits.upload_bytes if scope["method"] in ("POST", "PUT", "PATCH") else 0
        if size > limits.upload_bytes:
            raise _too_large(limits)
        if self._is_free(scope["path"]):
            yield size
            return
        if self.pending >= limits.pending or self.pending_bytes + size > limits.pending_bytes:
            raise Refused(503, "The server is busy; try again in a second.", retry_after=1)
        self.pending += 1
        self.pending_bytes += size
        try:
            yield size
        finally:
            self.pending -= 1
            self.pending_bytes -= size

    async def _read(self, body_stream: "_BodyStream", max_bytes: int) -> bytes | None:
        """Returns the whole body, or None if the client has closed the connection.

        Raises:
          Refused: The body is too large, or takes too long to arrive.
        """
        if not max_bytes:
            return b""
        chunks, size, limits = [], 0, self._limits
        try:
            async with asyncio.timeout(limits.body_seconds):
                while not body_stream.ended:
                    chunks.append(await body_stream.next_chunk())
                    size += len(chunks[-1])
                    if size > max_bytes:
                        raise _too_large(limits)
        except TimeoutError:
            body_stream.ended = True  # do not wait again for a client this slow
            raise Refused(
                408, f"The upload took longer than {limits.body_seconds:g} seconds."
            ) from None
        return None if body_stream.disconnected else b"".join(chunks)


class _BodyStream:
    """The body of a request, read as it arrives."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self.ended = self.disconnected = False

    async def next_chunk(self) -> bytes:
        """Returns the next bytes of the body and sets `ended` if they are the last."""
        message = await self._receive()
        self.disconnected = message["type"] == "http.disconnect"
        self.ended = self.disconnected or not message.get("more_body")
        return message.get("body", b"")

    async def discard(self, max_bytes: int, seconds: float) -> None:
        """Reads the rest of the body and discards it, up to a number of bytes and of seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.ended and max_bytes > 0:
                    max_bytes -= len(await self.next_chunk())


def _too_large(limits: Limits) -> Refused:
    return Refused(
        413, f"The upload is too large; at most {limits.upload_bytes / 2**20:g} MiB are accepted."
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a channel that delivers a body that was read already, and then what follows it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
