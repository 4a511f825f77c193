"""Puts load on a served run: 64 clients, then ten times as many.

python bench/serve.py --run=runs/demo [--seconds=60] [--out=bench/results/serve.json]

Each client posts photos one after another over its own connection. A refused client waits for as
long as the answer says, and tries again. The server and the clients, which are one process, share
this machine.
"""

import argparse
import asyncio
import collections
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mch_jax.serving.service import run_database
from mch_jax.serving.thumbnails import Thumbnails


def photos(run: Path, count: int) -> list[bytes]:
    """Returns JPEGs of the first photos of the run's database."""
    thumbnails = Thumbnails(run_database(run).photo)
    return [thumbnails.jpeg(item, 640) for item in range(count)]


def memory(pid: int) -> int:
    """Returns the resident memory of a process in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def ask(reader, writer, body: bytes) -> tuple[int, float]:
    """Posts a photo; returns the status of the answer and the seconds that it asks to wait."""
    head = f"POST /search?k=24 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:] if line)
    await reader.readexactly(int(fields["content-length"]))
    return int(lines[0].split()[1]), float(fields.get("retry-after", 0))


async def client(host: str, port: int, bodies: list[bytes], number: int, end: float, results: list):
    """Posts photos until `end`; appends the status and the seconds of each answer."""
    turn, link = number, None
    while time.monotonic() < end:
        begin, wait = time.monotonic(), 0.0
        try:
            if link is None:
                link = await asyncio.open_connection(host, port)
            async with asyncio.timeout(60):
                status, wait = await ask(*link, bodies[turn % len(bodies)])
        except (OSError, EOFError, TimeoutError) as error:
            status, link = type(error).__name__, None
        results.append((status, time.monotonic() - begin))
        await asyncio.sleep(wait * (0.5 + turn % 7 / 6))
        turn += 1
    if link:
        link[1].close()


async def load(
    host: str, port: int, bodies: list[bytes], clients: int, seconds: float, pid: int
) -> dict:
    """Returns the record of a number of clients during a number of seconds."""
    results: list[tuple[int | str, float]] = []
    begin, used = time.monotonic(), []
    tasks = [
        asyncio.create_task(client(host, port, bodies, number, begin + seconds, results))
        for number in range(clients)
    ]
    while time.monotonic() < begin + seconds:
        used.append(memory(pid))
        await asyncio.sleep(seconds / 20)
    await asyncio.gather(*tasks)
    wall = time.monotonic() - begin
    good = np.array([taken for status, taken in results if status == 200])
    refused = np.array([taken for status, taken in results if status == 503])
    return {
        "clients": clients,
        "seconds": round(wall, 1),
        "answers": {str(k): v for k, v in collections.Counter(s for s, _ in results).items()},
        "qps": round(len(good) / wall, 1),
        "p50_ms": round(1000 * float(np.median(good))),
        "p99_ms": round(1000 * float(np.quantile(good, 0.99))),
        "slowest_ms": round(1000 * float(good.max())),
        "refused_p99_ms": round(1000 * float(np.quantile(refused, 0.99))) if len(refused) else None,
        "memory_mb": [round(used[len(used) * quarter // 4] / 1e6) for quarter in range(4)]
        + [round(memory(pid) / 1e6)],
    }


def main() -> None:
    """Starts a server, puts load on it twice, and prints the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="workdir of a finished run")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bodies = photos(options.run, 200)
    command = [sys.executable, "-m", "mch_jax.serve", f"--run={options.run}", "--port=0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        host, port = server.stdout.readline().split("//")[-1].split(":")
        found = {"load_average_before": os.getloadavg()[0], "cores": os.cpu_count()}
        asyncio.run(load(host, int(port), bodies, options.clients, 3, server.pid))
        for factor in (1, 10):
            clients = factor * options.clients
            found[f"{clients} clients"] = asyncio.run(
                load(host, int(port), bodies, clients, options.seconds, server.pid)
            )
    finally:
        server.terminate()
        server.wait()
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
