"""Processes that decode uploaded photos.

A photo is decoded in a process of its own kind, with limits on time and memory. A process that
exceeds the time limit or crashes is ended and replaced. The service itself never decodes what a
stranger has sent: its threads stay free, and its memory does not grow.

Photos that take much memory or time are decoded one at a time, so that the other processes stay
free for others.

The processes receive bytes, and return JSON and pixels. Nothing that they send is unpickled.
"""

import asyncio
import atexit
import contextlib
import io
import json
import multiprocessing
import multiprocessing.connection
import multiprocessing.util
import os
import signal
import warnings
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from mch_jax.data import photos
from mch_jax.serving.limits import Limits, Refused, busy

# A photo is costly above these: bytes to decode it, and pixels times the scans of a JPEG. A photo
# of 12 megapixels with ten scans is not.
_COSTLY_BYTES = 2**28
_COSTLY_SCANNED = 200_000_000
_START_SECONDS = 60.0  # for a process to import Pillow, on a machine that is busy


Box = tuple[int, int, int, int]


class Query(NamedTuple):
    """A photo, or a part of one, to search by or to encode.

    Attributes:
      image: uint8 [s s 3], the part resized to the size that the encoder expects.
      size: Width and height of the original photo in pixels.
      box: The part: left, top, right, bottom in pixels of the original photo, turned upright.
    """

    image: np.ndarray
    size: tuple[int, int]
    box: Box


def query(pixels: UInt8[np.ndarray, "h w 3"], side: int, box: Box | None = None) -> Query:
    """Returns a decoded photo as a query for an encoder of this image size.

    Args:
      pixels: The photo.
      side: The image size.
      box: The part of the photo to search by; what is outside of the photo is cut off. Defaults to
        the whole photo.

    Raises:
      Refused: No pixel of the photo is in the box.
    """
    height, width, _ = pixels.shape
    left, top, right, bottom = box or (0, 0, width, height)
    right, bottom = min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        raise Refused(
            422, f"The box has no pixel of the photo, whose size is {width:,} x {height:,} pixels."
        )
    part = pixels[top:bottom, left:right]
    return Query(photos.resize(part, side), (width, height), (left, top, right, bottom))


def decode(
    body: bytes, max_pixels: int, may_be_costly: bool = True
) -> UInt8[np.ndarray, "h w 3"] | None:
    """Returns the pixels of an uploaded photo, turned upright by its EXIF orientation.

    Args:
      body: The bytes of the photo's file.
      max_pixels: The largest number of pixels that is accepted.
      may_be_costly: Whether to decode a photo that takes much time or memory. If False, None is
        returned for it.

    Raises:
      Refused: The photo is of an unknown type, too large or damaged.
    """
    too_many = Refused(413, f"The photo has too many pixels; at most {max_pixels:,} are accepted.")
    try:
        with Image.open(io.BytesIO(body), formats=photos.FORMATS) as image:
            pixels, scans = image.width * image.height, photos.num_scans(body)
            num_bytes = photos.num_bytes(image, scans)
    except UnidentifiedImageError:
        raise Refused(
            415, f"The upload is not a photo of a known type ({', '.join(photos.FORMATS)})."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_many from None
    except Exception:  # noqa: BLE001 - a damaged photo can raise anything in Pillow
        raise Refused(422, "The photo is damaged: its header cannot be read.") from None
    if pixels > max_pixels:
        raise too_many
    if scans > photos.MAX_SCANS:
        raise Refused(
            413, f"The photo has {scans:,} scans; at most {photos.MAX_SCANS} are accepted."
        )
    is_costly = num_bytes > _COSTLY_BYTES or pixels * scans > _COSTLY_SCANNED
    if is_costly and not may_be_costly:
        return None
    try:
        return photos.decode(body, "photo")
    except ValueError as error:
        if isinstance(error.__cause__, MemoryError):
            raise Refused(413, "The photo takes too much memory to decode.") from None
        raise Refused(422, "The photo is damaged or cut off and does not decode.") from None


class Decoders:
    """Decodes photos in processes, which are started when they are first needed.

    Args:
      side: The image size of the encoder.
      limits: `decoders`, `decode_seconds`, `decode_bytes` and `pixels` are used.
    """

    def __init__(self, side: int, limits: Limits):
        self._limits = limits
        self._idle = [_Decoder(side, limits) for _ in range(limits.decoders)]
        self._threads = ThreadPoolExecutor(limits.decoders, thread_name_prefix="decode")
        self._free: asyncio.Semaphore | None = None
        self._free_for_costly: asyncio.Semaphore | None = None

    def warm_up(self) -> None:
        """Starts all processes, so that no request waits for it."""
        list(self._threads.map(_Decoder.start, self._idle))

    def start(self) -> None:
        """Begins to accept photos, in the running event loop."""
        self._free = asyncio.Semaphore(self._limits.decoders)
        self._free_for_costly = asyncio.Semaphore(1)

    def stop(self) -> None:
        """Ends the processes."""
        for decoder in self._idle:
            decoder.stop()

    async def decode(
        self, body: bytes, has_left: Callable[[], Awaitable[bool]], box: Box | None = None
    ) -> Query:
        """Returns an uploaded photo as a query.

        Args:
          body: The bytes of the photo's file.
          has_left: Returns True if the client has closed the connection. The photo is then not
            decoded.
          box: The part of the photo to search by, as `query` takes it.

        Raises:
          Refused: The photo is of an unknown type, damaged, or takes too much time or memory; or no
            process became free in time.
        """
        if self._free_for_costly is None:
            raise RuntimeError("Decoders.start was not called")
        found = await self._decode(body, has_left, box, may_be_costly=False)
        if found is None:
            await self._acquire(self._free_for_costly)
            with contextlib.ExitStack() as stack:
                stack.callback(self._free_for_costly.release)
                found = await self._decode(body, has_left, box, may_be_costly=True)
        assert found is not None
        return found

    async def _acquire(self, semaphore: asyncio.Semaphore) -> None:
        """Waits for a semaphore, for as long as a photo may take to decode."""
        try:
            async with asyncio.timeout(self._limits.decode_seconds):
                await semaphore.acquire()
        except TimeoutError:
            raise busy() from None

    async def _decode(
        self,
        body: bytes,
        has_left: Callable[[], Awaitable[bool]],
        box: Box | None,
        may_be_costly: bool,
    ) -> Query | None:
        assert self._free is not None
        await self._acquire(self._free)
        with contextlib.ExitStack() as stack:
            stack.callback(self._free.release)
            if await has_left():
                raise Refused(499, "The client has closed the connection.")
            decoder = self._idle.pop()
            stack.callback(self._idle.append, decoder)
            loop = asyncio.get_running_loop()
            task = loop.run_in_executor(self._threads, decoder.decode, body, box, may_be_costly)
            # The process stays busy until it is done, also where the request is cancelled.
            done = stack.pop_all()
            task.add_done_callback(lambda _: done.close())
        return await asyncio.shield(task)


_running: weakref.WeakSet["_Decoder"] = weakref.WeakSet()


@atexit.register  # runs before multiprocessing's own function, which waits for processes to end
def _stop_all() -> None:
    for decoder in list(_running):
        decoder.stop()


class _Decoder:
    """One process. Used by one thread at a time."""

    def __init__(self, side: int, limits: Limits):
        self._side, self._limits = side, limits
        self._process: BaseProcess | None = None
        self._connection: multiprocessing.connection.Connection | None = None

    def start(self) -> None:
        """Starts the process unless it runs, and waits until it is ready."""
        if self._process is not None and self._process.is_alive():
            return
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        arguments = (other, self._side, self._limits.pixels, self._limits.decode_bytes)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        self._process = process
        _running.add(self)
        other.close()
        if not self._connection.poll(_START_SECONDS) or self._connection.recv_bytes() != b"ready":
            self.stop()
            raise OSError("a process that decodes photos did not start")

    def stop(self) -> None:
        """Ends the process."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
        self._connection = self._process = None

    def decode(self, body: bytes, box: Box | None, may_be_costly: bool) -> Query | None:
        """Returns a photo as a query, or None if it is costly and may not be.

        Raises:
          Refused: The photo is of an unknown type, damaged, or takes too much time or memory.
        """
        self.start()
        connection, seconds = self._connection, self._limits.decode_seconds
        assert connection is not None
        try:
            connection.send_bytes(json.dumps([box, may_be_costly]).encode())
            connection.send_bytes(body)
            if not connection.poll(seconds):
                self.stop()
                raise Refused(413, f"The photo takes longer than {seconds:g} seconds to decode.")
            found = json.loads(connection.recv_bytes(4096))
            if not found:
                return None
            if "status" in found:
                raise Refused(found["status"], found["reason"])
            pixels = connection.recv_bytes(self._side**2 * 3)
            image = np.frombuffer(pixels, np.uint8).reshape(self._side, self._side, 3)
            return Query(image, tuple(found["size"]), tuple(found["box"]))
        except (OSError, EOFError):
            self.stop()
            raise Refused(422, "The photo is damaged and does not decode.") from None


def _work(
    connection: multiprocessing.connection.Connection, side: int, max_pixels: int, max_bytes: int
) -> None:
    """Answers with the photo of each message until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service decides when to stop
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    Image.init()
    _limit_memory(max_bytes)
    with contextlib.suppress(OSError, EOFError):
        connection.send_bytes(b"ready")
        while True:
            (box, may_be_costly), body = (
                json.loads(connection.recv_bytes()),
                connection.recv_bytes(),
            )
            try:
                pixels = decode(body, max_pixels, may_be_costly)
                found = None if pixels is None else query(pixels, side, box)
                del pixels
            except Refused as refused:
                answer = {"status": refused.status, "reason": refused.reason}
                connection.send_bytes(json.dumps(answer).encode())
            except MemoryError:
                answer = {"status": 413, "reason": "The photo takes too much memory to decode."}
                connection.send_bytes(json.dumps(answer).encode())
            else:
                if found is None:
                    connection.send_bytes(b"{}")
                    continue
                answer = {"size": found.size, "box": found.box}
                connection.send_bytes(json.dumps(answer).encode())
                connection.send_bytes(np.ascontiguousarray(found.image).tobytes())


def _limit_memory(max_bytes: int) -> None:
    """Limits the memory that this process can add, where the system supports that."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            num_bytes = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = num_bytes + max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, OSError, ValueError):
        return
