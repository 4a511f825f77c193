"""Attacks a served run in several ways at once, with a plain client beside them.

python launch/abuse.py --run=runs/demo [--seconds=120] [--searches=5000]

Starts the service, and prints a table: answers per second and the longest wait of a plain client
that posts a photo, searches by an item and gets a thumbnail in turn, alone and under attack, and
the memory of the service with its processes before and after a number of photo searches.

The attackers send photos of many scans or wide values, never read their answers, send bodies to
paths that take none, and open connections that stay idle or send half a header. The service, the
attackers and the client share this machine.
"""

import argparse
import asyncio
import collections
import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

HEAD = "{} HTTP/1.1\r\nHost: localhost\r\n"


class Address(NamedTuple):
    """Where the service listens."""

    host: str
    port: int


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """Returns an image as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def many_scans(side: int, count: int) -> bytes:
    """Returns a progressive JPEG whose last scan is repeated."""
    file = encoded(Image.new("L", (side, side), 90), "JPEG", quality=90, progressive=True)
    scan = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + count * scan + b"\xff\xd9"


def costly_photos() -> list[bytes]:
    """Returns small files that take much time or memory to decode."""
    wide = Image.fromarray(np.zeros((7000, 7000), np.int32))
    return [
        many_scans(7000, 90),
        many_scans(7000, 1334),
        encoded(wide, "TIFF", compression="tiff_adobe_deflate"),
        encoded(wide.convert("I;16"), "PNG"),
        encoded(Image.new("RGB", (7000, 7000)), "PNG"),
    ]


def post(path: str, body: bytes, size: int | None = None) -> bytes:
    """Returns a request with a body, or with the beginning of one of a larger size."""
    length = len(body) if size is None else size
    head = HEAD.format(f"POST {path}") + "Content-Type: image/jpeg\r\n"
    return f"{head}Content-Length: {length}\r\n\r\n".encode() + body


def get(path: str) -> bytes:
    """Returns a request without a body."""
    return (HEAD.format(f"GET {path}") + "\r\n").encode()


async def exchange(address: Address, request: bytes, seconds: float = 60.0) -> int:
    """Sends a request over a connection of its own; returns the status of the answer."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(*address)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            size = int(head.partition("content-length: ")[2].partition("\r")[0])
            await reader.readexactly(size)
            return int(head.split()[1])
        finally:
            writer.transport.abort()


async def uploads(address: Address, number: int, bodies: list[bytes]) -> None:
    """Posts costly photos; every second one hangs up without waiting for the answer."""
    seconds = 0.5 if number % 2 else 60.0
    with contextlib.suppress(TimeoutError):
        await exchange(address, post("/search", bodies[number % len(bodies)]), seconds)


async def hold(address: Address, request: bytes, seconds: float) -> None:
    """Opens a connection, sends a request or the beginning of one, and reads nothing."""
    _, writer = await asyncio.open_connection(*address)
    try:
        writer.transport.get_extra_info("socket").setblocking(False)
        writer.write(request)
        await asyncio.sleep(seconds)
    finally:
        writer.transport.abort()


def attacks(address: Address) -> Iterator[tuple[int, Callable[[int], Awaitable[None]]]]:
    """Yields each attack with the number of clients that repeat it."""
    bodies = costly_photos()
    listing, half = get("/items?limit=200") * 200, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Half: "
    free = [post(path, bytes(2**20), 16 * 2**20) for path in ("/health", "/", "/metrics")]
    yield 6, lambda number: uploads(address, number, bodies)
    yield 128, lambda _: hold(address, listing, 25)
    yield 20, lambda number: hold(address, free[number % 3], 25)
    yield 600, lambda number: hold(address, half if number % 2 else b"", 25)


async def repeat(attack: Callable[[int], Awaitable[None]], number: int) -> None:
    """Repeats an attack until it is cancelled."""
    while True:
        with contextlib.suppress(OSError, EOFError, ValueError):
            await attack(number)
        await asyncio.sleep(0.5)


async def plain(address: Address, photo: bytes, seconds: float) -> str:
    """Asks in turn, as a person's browser does; returns a row of the table."""
    requests = [post("/search?k=24", photo), get("/search?item=1"), get("/items/1/photo")]
    statuses, longest, end, turn = collections.Counter(), 0.0, time.monotonic() + seconds, 0
    while (begin := time.monotonic()) < end:
        try:
            status = str(await exchange(address, requests[turn % 3]))
        except (OSError, EOFError, TimeoutError) as error:
            status = type(error).__name__
        longest = max(longest, time.monotonic() - begin)
        statuses[status] += 1
        turn += 1
        if status == "503":
            await asyncio.sleep(1)
    counts = ", ".join(f"{count:,} x {status}" for status, count in sorted(statuses.items()))
    return f"{statuses['200'] / seconds:.1f} | {longest:.2f} | {counts}"


async def under_attack(address: Address, photo: bytes, seconds: float) -> str:
    """Returns the plain client's row while all attackers are busy."""
    tasks = [
        asyncio.create_task(repeat(attack, number))
        for count, attack in attacks(address)
        for number in range(count)
    ]
    await asyncio.sleep(2)
    try:
        return await plain(address, photo, seconds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def search_often(address: Address, photo: bytes, count: int) -> None:
    """Posts a photo a number of times, over eight connections at a time."""
    left = iter(range(count))

    async def client() -> None:
        for _ in left:
            await exchange(address, post("/search?k=24", photo))

    await asyncio.gather(*(client() for _ in range(8)))


def memory(pid: int) -> str:
    """Returns the resident memory of a process and its children in MiB."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += map(int, path.read_text().split())
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in found)
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**20:,.0f} MiB in {len(found)} processes"


def report(run: Path, seconds: float, searches: int) -> None:
    """Starts the service of a run, measures it and prints the table."""
    command = [sys.executable, "-m", "mch_jax.serve", f"--run={run}", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            host, port = url.removeprefix("http://").rsplit(":", 1)
            address, random = Address(host, int(port)), np.random.default_rng(0)
            pixels = random.integers(0, 255, (128, 128, 3)).astype(np.uint8)
            photo = encoded(Image.fromarray(pixels), "JPEG")
            asyncio.run(plain(address, photo, min(5.0, seconds)))
            print("a plain client | answers per second | longest wait, s | answers")
            print(f"alone | {asyncio.run(plain(address, photo, seconds / 4))}")
            print(f"under attack | {asyncio.run(under_attack(address, photo, seconds))}")
            print(f"memory after the attack: {memory(server.pid)}", flush=True)
            asyncio.run(search_often(address, photo, min(500, searches)))
            print(f"memory before {searches:,} photo searches: {memory(server.pid)}", flush=True)
            asyncio.run(search_often(address, photo, searches))
            print(f"memory after them: {memory(server.pid)}")
            begin = time.monotonic()
            server.terminate()
            server.wait(90)
            print(f"seconds to stop: {time.monotonic() - begin:.1f}")
        finally:
            server.kill()


def main() -> None:
    """Reads the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="workdir of a finished run")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to attack")
    parser.add_argument("--searches", type=int, default=5000, help="photo searches for memory")
    options = parser.parse_args()
    report(options.run, options.seconds, options.searches)


if __name__ == "__main__":
    main()
