"""Limits on requests, as ASGI middleware: how many at a time, how large, and to which host.

A request beyond the limits is refused with a status and one sentence. Its body is read and
discarded before the answer is sent, so that the client sees the answer, not a closed connection.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mch_jax.serving.limits import Limits, Refused, busy

HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


class Gate:
    """ASGI middleware that applies limits before the application sees a request's body.

    Args:
      app: The application.
      limits: Limits on requests.
      is_free: Returns True for paths that are never refused for being busy, such as a health check,
        if the request has no body.
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

        slot = contextlib.ExitStack()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                slot.close()  # the answer is complete: a client that reads slowly holds no slot
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            with slot:
                self._check_host(scope)
                max_bytes = slot.enter_context(self._admitted(scope))
                body = await self._read(body_stream, max_bytes)
                if body is None:
                    status = 499  # the client has closed the connection
                else:
                    replay = _replay(body, receive)
                    del body  # is freed once the endpoint has read it
                    await self._app(scope, replay, send_and_note)
        except Refused as refused:
            await body_stream.discard(self._limits.discarded_bytes, self._limits.body_seconds)
            response = JSONResponse({"error": refused.reason}, refused.status, refused.headers)
            await response(scope, receive, send_and_note)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._on_answer(route, status, time.monotonic() - begin)

    def _check_host(self, scope: Scope) -> None:
        """Checks the header Host, so that no page of another site can reach the service by DNS.

        Raises:
          Refused: The host is not an allowed one.
        """
        allowed = self._limits.hosts
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        host = _without_port(hosts[0].decode("latin-1")) if len(hosts) == 1 else ""
        if "*" not in allowed and host not in allowed:
            raise Refused(
                400,
                "The request names a host that is not allowed; start the service with its name in "
                "--allowed_hosts.",
            )

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
        if not size and self._is_free(scope["path"]):
            yield 0
            return
        max_bytes = limits.pending_bytes // (2 if size > 2**20 else 1)
        if self.pending >= limits.pending or self.pending_bytes + size > max_bytes:
            raise busy()
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


def _without_port(host: str) -> str:
    """Returns the host of a header Host in lower case, without its port, brackets and last dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a channel that delivers a body that was read already, and then what follows it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
