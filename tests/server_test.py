"""Limits on connections and requests: what a hostile client costs, and what others notice."""

import contextlib
import socket
import time

import httpx
import pytest
import small_run as small

from mch_jax.serving import server
from mch_jax.serving.gate import Gate
from mch_jax.serving.limits import Limits, Refused
from mch_jax.serving.service import Service

LIMITS = Limits(
    pending=4, upload_bytes=200_000, pending_bytes=500_000, body_seconds=1.5, discarded_bytes=10**6,
    decoders=1, connections=12, header_seconds=0.8, header_bytes=8_192, send_seconds=0.8,
    stop_seconds=0.3,
)  # fmt: skip
GET = b"GET /items?limit=200 HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def service(small_run):
    return Service.open(small_run, LIMITS)


@pytest.fixture(scope="module")
def url(service):
    with small.serving(service, send_buffer=16_384) as url:
        yield url


@pytest.fixture
def connect(url):
    """Returns a function that opens a connection and sends some bytes."""
    with contextlib.ExitStack() as stack:

        def connect(data=b"", address=url, receive_buffer=None):
            link = stack.enter_context(socket.socket())
            if receive_buffer:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            link.settimeout(20)
            host, port = address.removeprefix("http://").split(":")
            link.connect((host, int(port)))
            link.sendall(data)
            return link

        yield connect


def until_closed(link):
    """Returns what the server sends until it closes the connection, and the seconds until then."""
    begin, received = time.monotonic(), b""
    with contextlib.suppress(ConnectionError):
        while data := link.recv(65536):
            received += data
    return received, time.monotonic() - begin


def is_cut_off(link, parts, seconds):
    """Sends parts, with pauses, until the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        for part in parts:
            link.sendall(part)
            time.sleep(seconds)
        return False
    return True


def healthy(url):
    begin = time.monotonic()
    with httpx.Client(base_url=url, timeout=20) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/items/3").status_code == 200
    return time.monotonic() - begin


def answer(link, lines):
    link.sendall(b"\r\n".join([b"GET /items/3 HTTP/1.1", *lines, b"Connection: close", b"\r\n"]))
    return until_closed(link)[0]


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST.:80", b"127.0.0.1:8000", b"[::1]:8000", b"[::1]"]
)
def test_requests_to_the_loopback_are_answered(connect, host):
    assert answer(connect(), [b"Host: " + host]).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "lines",
    [
        [b"Host: evil.example"],
        [b"Host: evil.example:8000"],
        [b"Host: localhost.evil.example"],
        [b"Host: evil.example:localhost"],
        [b"Host: "],
        [b"Host: localhost", b"Host: evil.example"],
        [b"X-Forwarded-Host: localhost"],
    ],
)
def test_requests_to_other_hosts_are_refused(connect, lines):
    received = answer(connect(), lines)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"--allowed_hosts" in received


def test_a_host_can_be_allowed(service):
    def status(hosts):
        other = Service(service.encoder, service.database, "dch", LIMITS._replace(hosts=hosts))
        with small.serving(other) as url:
            headers = {"host": "photos.example:8000"}
            return httpx.get(f"{url}/items/3", headers=headers, timeout=20).status_code

    assert status(("photos.example",)) == 200
    assert status(("*",)) == 200
    assert status(("example",)) == 400


@pytest.mark.parametrize("path", ["/health", "/", "/metrics", "/openapi.json", "/nothing"])
def test_a_body_counts_on_every_path(service, connect, url, path):
    """Bodies that no endpoint reads are counted like uploads, so that their sum is limited."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 190000\r\n\r\n".encode()
    links = [connect(head + bytes(60_000)) for _ in range(2)]
    wait_until(lambda: service.gate.pending == 2)
    assert service.gate.pending_bytes == 380_000
    with httpx.Client(base_url=url, timeout=20) as client:
        assert client.post(path, content=bytes(190_000)).status_code == 503
        assert client.post(path, content=bytes(200_001)).status_code == 413
        assert client.get("/health").json()["pending"] == 2
    chunked = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    refused = connect(chunked.encode() + b"3\r\nabc\r\n0\r\n\r\n")
    assert refused.recv(4096).startswith(b"HTTP/1.1 503 ")
    for link in links:
        assert until_closed(link)[0].startswith(b"HTTP/1.1 408 ")
    assert service.gate.pending_bytes == 0


def test_large_bodies_leave_room_for_small_ones():
    async def app(scope, receive, send):
        raise AssertionError

    gate = Gate(app, Limits(), lambda _: False, lambda *_: None)

    def admit(size):
        headers = [(b"content-length", str(size).encode())]
        return gate._admitted({"headers": headers, "path": "/search", "method": "POST"})

    with contextlib.ExitStack() as stack:
        for _ in range(8):
            assert stack.enter_context(admit(16 * 2**20)) == 16 * 2**20
        with pytest.raises(Refused, match="busy"):
            stack.enter_context(admit(2 * 2**20))
        assert stack.enter_context(admit(2**20)) == 2**20
    assert (gate.pending, gate.pending_bytes) == (0, 0)


def wait_until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    assert holds()


def test_clients_that_never_read_hold_no_slot(service, connect):
    other = Service(service.encoder, service.database, "dch", LIMITS._replace(send_seconds=60.0))
    with small.serving(other, send_buffer=16_384) as url:
        for _ in range(2 * LIMITS.pending):
            connect(GET * 60, url, receive_buffer=4096)
        answered = [False]
        with httpx.Client(base_url=url, timeout=20) as client:

            def is_answered():
                answered.append(client.get("/items/3").status_code == 200)
                return all(answered[-10:])

            wait_until(is_answered)  # once the others are blocked
        begin = time.monotonic()
    assert time.monotonic() - begin < 10  # a stop does not wait for them either


def test_clients_that_never_read_are_cut_off(connect, url, caplog):
    # About 1 MB of answers each, more than the buffers of both sides hold. No more clients than may
    # be answered at once: the short answer "busy" to all of a client's requests could fit.
    links = [connect(GET * 300, receive_buffer=4096) for _ in range(LIMITS.pending)]
    for link in links:  # what was buffered arrives, then the connection ends
        assert is_cut_off(link, [b"GET /", *[b"x"] * 200], 0.1)
        received, _ = until_closed(link)
        assert 0 < received.count(b"HTTP/1.1 ") < 300
    assert healthy(url) < 10
    assert not caplog.records, caplog.text


def test_a_client_that_reads_slowly_gets_its_whole_answer(connect):
    link = connect(GET * 40, receive_buffer=4096)
    received = b""
    with contextlib.suppress(TimeoutError):
        link.settimeout(0.5)
        while data := link.recv(20_000):
            received += data
            time.sleep(0.01)
    assert received.count(b"HTTP/1.1 200 OK") == 40


def test_idle_connections_and_half_headers_leave_room_for_others(connect, url):
    half = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Half: "
    links = [connect(half if i % 2 else b"") for i in range(5 * LIMITS.connections)]
    for _ in range(5):
        assert healthy(url) < 10
    for link in links:
        received, seconds = until_closed(link)
        assert (received, seconds < 10) == (b"", True)


def test_a_header_that_trickles_in_has_the_same_time_limit(connect):
    link, begin = connect(b"GET /health HTTP/1.1\r\nHost: localhost\r\n"), time.monotonic()
    assert is_cut_off(link, (b"X: y\r\n" for _ in range(400)), seconds=0.05)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "second request"])
def test_a_header_without_end_is_cut_off(connect, before):
    link, begin = connect(before + b"GET /health HTTP/1.1\r\n"), time.monotonic()
    assert is_cut_off(link, (b"X-Many: " + b"x" * 1000 + b"\r\n" for _ in range(1000)), 0.001)
    assert time.monotonic() - begin < 10


def test_a_connection_can_ask_again(url):
    with httpx.Client(base_url=url, timeout=20) as client:
        for _ in range(3):
            assert client.get("/items?limit=3").status_code == 200
            time.sleep(0.6 * LIMITS.header_seconds)


def test_when_every_connection_is_answering_further_ones_get_503(service, connect):
    limits = LIMITS._replace(connections=3, pending=8)
    other = Service(service.encoder, service.database, "dch", limits)
    head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n"
    with small.serving(other) as url:
        links = [connect(head, url) for _ in range(3)]
        wait_until(lambda: other.pending == 3)
        received, _ = until_closed(connect(b"", url))
        assert received.startswith(b"HTTP/1.1 503 ")
        assert received.endswith(b'{"error":"The server is busy; try again in a second."}\r\n')
        assert int(received.partition(b"length: ")[2].partition(b"\r")[0]) == len(
            received.partition(b"\r\n\r\n")[2]
        )
        for link in links:
            assert link.recv(4096).startswith(b"HTTP/1.1 408 ")
        healthy(url)


def test_connections_leave_descriptors_for_other_files(monkeypatch):
    resource = pytest.importorskip("resource")
    for soft, expected in ((1_000_000, 512), (256, 128), (1, 1), (-1, 512)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert server._max_connections(Limits()) == expected


def test_a_stop_does_not_wait_for_half_a_header(service, connect):
    other = Service(service.encoder, service.database, "dch", LIMITS._replace(header_seconds=60.0))
    with small.serving(other) as url:
        for half in (b"", b"GET / HT", GET + b"GET / HT"):
            connect(half, url)
        healthy(url)
        begin = time.monotonic()
    assert time.monotonic() - begin < 10
