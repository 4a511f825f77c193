"""What a service lets in: as many requests and bytes as it can answer, and none that are too large.

What is refused is refused at once, with a status and one sentence, after the request has been read
to its end, so that the client sees the answer rather than a closed connection.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


class Limits(NamedTuple):
    """What a request may ask for.

    Attributes:
      pending: requests that are worked on or wait at one time.
      upload: bytes of one request's body.
      pending_upload: bytes of all bodies at one time.
      pixels: of a photo.
      body_seconds: until a body has arrived.
      discard: bytes that are read of a refused body, so that its sender hears the answer.
    """

    pending: int = 128
    upload: int = 16 * 2**20
    pending_upload: int = 256 * 2**20
    pixels: int = 50_000_000
    body_seconds: float = 30.0
    discard: int = 64 * 2**20


class Refused(Exception):
    """A request is refused.

    Args:
      status: of the answer.
      reason: one sentence.
      retry_after: seconds until another try makes sense.
    """

    def __init__(self, status: int, reason: str, retry_after: int | None = None):
        super().__init__(reason)
        self.status, self.reason = status, reason
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}


class Gate:
    """ASGI middleware that applies limits before a request's body is looked at.

    Args:
      app: what is behind the gate.
      limits: see `Limits`.
      is_free: whether a path passes without being counted, as a health check does.
      on_answer: is told path template, status and seconds of every answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        is_free: Callable[[str], bool],
        on_answer: Callable[[str, int, float], Any],
    ):
        self._app, self._limits, self._is_free, self._on_answer = app, limits, is_free, on_answer
        self.pending = self.pending_upload = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, incoming = time.monotonic(), 500, _Incoming(receive)

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            with self._admitted(scope) as most:
                body = await self._read(incoming, most)
                if body is None:
                    status = 499  # the client has gone
                else:
                    await self._app(scope, _replay(body, receive), watched)
        except Refused as refused:
            await incoming.discard(self._limits)
            content, headers = {"error": refused.reason}, refused.headers
            await JSONResponse(content, refused.status, headers)(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._on_answer(route, status, time.monotonic() - begin)

    @contextlib.contextmanager
    def _admitted(self, scope: Scope):
        """Counts a request in and out; yields the bytes that its body may have."""
        limits, declared = self._limits, dict(scope["headers"]).get(b"content-length")
        size = int(declared) if declared and declared.isdigit() else None
        if size is None:  # a body whose size is not known is counted at its largest
            size = limits.upload if scope["method"] in ("POST", "PUT", "PATCH") else 0
        if size > limits.upload:
            raise _too_large(limits)
        if self._is_free(scope["path"]):
            yield size
            return
        if self.pending >= limits.pending or self.pending_upload + size > limits.pending_upload:
            raise Refused(503, "The server is busy; try again in a second.", retry_after=1)
        self.pending += 1
        self.pending_upload += size
        try:
            yield size
        finally:
            self.pending -= 1
            self.pending_upload -= size

    async def _read(self, incoming: "_Incoming", most: int) -> bytes | None:
        """Returns the whole body, or None where the client has gone."""
        if not most:
            return b""
        chunks, size, limits = [], 0, self._limits
        try:
            async with asyncio.timeout(limits.body_seconds):
                while not incoming.ended:
                    chunks.append(await incoming.chunk())
                    size += len(chunks[-1])
                    if size > most:
                        raise _too_large(limits)
        except TimeoutError:
            incoming.ended = True  # whoever sends so slowly is not waited for any longer
            raise Refused(
                408, f"The upload took longer than {limits.body_seconds:g} seconds."
            ) from None
        return None if incoming.gone else b"".join(chunks)


class _Incoming:
    """A request's body as it arrives."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self.ended = self.gone = False

    async def chunk(self) -> bytes:
        """Returns what arrives next; `ended` tells whether there is more."""
        message = await self._receive()
        self.gone = message["type"] == "http.disconnect"
        self.ended = self.gone or not message.get("more_body")
        return message.get("body", b"")

    async def discard(self, limits: Limits) -> None:
        """Reads what is left, up to a limit of bytes and of seconds."""
        left = limits.discard
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.body_seconds):
                while not self.ended and left > 0:
                    left -= len(await self.chunk())


def _too_large(limits: Limits) -> Refused:
    return Refused(
        413, f"The upload is too large; at most {limits.upload / 2**20:g} MiB are accepted."
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a channel that gives a body that has been read, then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
