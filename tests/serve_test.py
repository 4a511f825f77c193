"""The serve command: a stop under load, wrong arguments, and codes of other photos."""

import contextlib
import io
import json
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
import small_run as small

from mch_jax.database import Database
from mch_jax.serving.limits import Limits
from mch_jax.serving.service import Service


def jpeg(seed):
    stream = io.BytesIO()
    small.photo(seed).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def test_accepted_requests_are_answered_after_a_stop(small_run):
    """Stops the server in the middle of twelve uploads, then sends the rest of each."""
    command = [sys.executable, "-m", "mch_jax.serve", f"--run={small_run}", "--port=0"]
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as server,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(server.kill)
        url = server.stdout.readline().split()[-1]
        host, port = url.removeprefix("http://").split(":")
        uploads = []
        for seed in range(12):
            link = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            body = jpeg(seed)
            head = "POST /encode HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
            link.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:100])
            uploads.append((link, body[100:]))
        while httpx.get(f"{url}/health", timeout=60).json()["pending"] < len(uploads):
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(httpx.TransportError):  # until it accepts no connections
            while True:
                httpx.get(f"{url}/health", timeout=60)
        for link, rest in uploads:
            link.sendall(rest)
        for link, _ in uploads:
            answer = b"".join(iter(lambda link=link: link.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["regions"]) == 6
        assert server.wait(60) in (0, -signal.SIGTERM)
        assert server.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--run is missing"),
        (["--run={run}/absent"], "absent/encoder.npz does not exist"),
        (["--run={run}", "--images=x"], "--images needs --database"),
        (["--run={run}", "--host=256.0.0.1"], "expected an address of this machine"),
    ],
)
def test_wrong_arguments_get_one_line(small_run, arguments, reason):
    arguments = [argument.format(run=small_run) for argument in arguments]
    command = [sys.executable, "-m", "mch_jax.serve", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert reason in result.stderr


def test_codes_of_other_photos_are_served(small_run):
    path = small_run / "codes" / "database.npz"
    service = Service.open(small_run, Limits(decoders=1), path, small_run / "photos")
    assert len(service.thumbnail(0, 160)) > 100
    assert service.describe(0).labels == []
    assert "of the data set folder" in service.knows
    bare = Database.open(path)
    with pytest.raises(ValueError, match="not available"):
        bare.photo(0)
    assert json.dumps(bare.size(0))
