import hashlib
import http.server
import threading

import published
import pytest

from mch_jax import data, prepare
from mch_jax.data import fetch, literature, records


@pytest.fixture
def mirflickr(tmp_path):
    published.WRITERS["mirflickr"](tmp_path)
    return tmp_path


@pytest.fixture
def server():
    """A web server that supports range requests, and the address of a file on it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        body = bytes(range(256)) * 40
        requests: list[str] = []  # noqa: RUF012
        cut = 0

        def do_GET(self):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.requests.append(self.headers["Range"])
            if start >= len(self.body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(self.body) - start))
            self.end_headers()
            self.wfile.write(self.body[start : len(self.body) - self.cut])

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield Handler, f"http://127.0.0.1:{running.server_port}/a.zip"
        running.shutdown()
        thread.join()


def test_a_download_goes_on_where_it_was_cut_off(server, tmp_path):
    handler, url = server
    checksum = hashlib.sha256(handler.body).hexdigest()
    archive = fetch.Archive("a.zip", url, len(handler.body), "sha256", checksum)
    handler.cut = 1000
    with pytest.raises(ValueError, match="cut off, 1,000 bytes are missing.*run the command again"):
        fetch.download(archive, tmp_path)
    assert not (tmp_path / "a.zip").exists()
    handler.cut = 0
    path = fetch.download(archive, tmp_path)
    assert path.read_bytes() == handler.body
    assert handler.requests[-1] == f"bytes={len(handler.body) - 1000}-"
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]
    assert fetch.check(path, archive) == "right"
    assert fetch.check(path, fetch.Archive("a.zip")) == "unknown"


def test_wrong_archives_are_refused(server, tmp_path):
    handler, url = server
    with pytest.raises(ValueError, match="has the sha256 .*, expected 00; remove it"):
        fetch.download(fetch.Archive("a.zip", url, checksum="00"), tmp_path)
    with pytest.raises(ValueError, match="10,240 bytes, expected 5; remove"):
        fetch.check(tmp_path / "a.zip.part", fetch.Archive("a.zip", size=5))
    with pytest.raises(ValueError, match="cannot be downloaded; docs/datasets.md"):
        fetch.download(fetch.Archive("b.zip"), tmp_path)


def test_every_data_set_has_its_archives_and_terms():
    assert set(fetch.ARCHIVES) == set(fetch.TERMS) == set(records.BUILDERS) == set(data.PUBLISHED)
    for name, names in (("coco", literature.COCO_ARCHIVES),
                        ("mirflickr", literature.MIRFLICKR_ARCHIVES)):  # fmt: skip
        assert tuple(archive.name for archive in fetch.ARCHIVES[name]) == names
        for archive in fetch.ARCHIVES[name]:
            assert len(archive.checksum) in (0, hashlib.new(archive.algorithm).digest_size * 2)


def test_prepare_prints_the_next_command(mirflickr, capsys, monkeypatch):
    arguments = ["--dataset=mirflickr", f"--root={mirflickr}"]
    with pytest.raises(ValueError, match="mirflickr25k.zip' has the md5 .*remove it"):
        prepare.main(arguments)
    monkeypatch.setattr(fetch, "ARCHIVES", {"mirflickr": (fetch.Archive("mirflickr25k.zip"),)})
    with pytest.raises(ValueError, match="expected photo numbers|are not in"):
        prepare.main(arguments)  # the stand-in has 32 photos instead of 25,000
    dataset = data.load("mirflickr", mirflickr, seed=7, **published.SETTINGS["mirflickr"])
    monkeypatch.setattr(data, "load", lambda *_, **__: dataset)
    prepare.main(arguments)
    assert "--config=configs/mirflickr_dch.py --config.dataset.root=" in capsys.readouterr().out
