"""The JSON API: answers equal the index's, every refusal, batches, and a stop under load."""

import asyncio
import io
import socket
import struct
import threading
import zlib

import httpx
import numpy as np
import pytest
import small_run as small
from PIL import Image

from mch_jax import codes, regions
from mch_jax.data import photos
from mch_jax.serving import api, thumbnails
from mch_jax.serving.limits import Limits
from mch_jax.serving.service import Service

LIMITS = Limits(
    pending=8, upload_bytes=200_000, pending_bytes=800_000, pixels=1_000_000, decoders=1
)


@pytest.fixture(scope="module")
def service(small_run):
    return Service.open(small_run, LIMITS)


@pytest.fixture(scope="module")
def client(service):
    with small.serving(service) as url, httpx.Client(base_url=url, timeout=300) as client:
        yield client


def jpeg(seed=3, **options):
    stream = io.BytesIO()
    small.photo(seed).save(stream, "JPEG", quality=95, **options)
    return stream.getvalue()


def form(body, name="photo.jpg", kind="image/jpeg"):
    return {"photo": (name, body, kind)}


def sentence(response, status):
    """Checks that a response is a refusal in one sentence, and returns the sentence."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error[0].isupper() or ": " in error
    assert error.endswith(".")
    assert "\n" not in error
    assert "Traceback" not in error
    return error


def test_search_equals_the_index(client, service):
    body = jpeg()
    answer = client.post("/search?k=5&compare=true", files=form(body))
    assert answer.status_code == 200, answer.text
    image = photos.resize(photos.decode(body), small.SIDE)
    encoded = service.encoder.query(image[None])
    query, margins = encoded.codes[0], encoded.margins[0]
    found = answer.json()
    assert found["code"] == query.tobytes().hex()
    for name, index in (("mch", service.database.index), ("base", service.database.base_index)):
        hits = index.search(query, 5)
        near, _ = service.database.search(query, 5, name == "base", margins)
        assert [hit["item"] for hit in found[name]["hits"]] == [x.item for x in near]
        assert [hit["distance"] for hit in found[name]["hits"]] == hits.distance[0].tolist()
        assert found[name]["probed"] == hits.probed[0]
        assert found[name]["nonempty"] == hits.nonempty[0]
        for hit in found[name]["hits"]:  # the code is stored, and as far away as stated
            code = np.frombuffer(bytes.fromhex(hit["code"]), np.uint8)
            assert np.bitwise_count(code ^ query[0]).sum() == hit["distance"]
            stored = client.get(f"/items/{hit['item']}").json()["codes"]
            assert {k: hit[k] for k in ("region", "box", "code", "keep_prob")} in stored
    assert {hit["region"] for hit in found["base"]["hits"]} == {"whole image"}
    raw = client.post(
        "/search?k=5&compare=true", content=body, headers={"content-type": "image/jpeg"}
    )
    assert raw.json() == found


def by_brute_force(database, query_codes, k):
    """Returns the distances of the k nearest items to any of a query's codes."""
    distance = np.bitwise_count(database.codes[:, None] ^ query_codes).sum(2).min(1)
    nearest = [distance[list(database.rows(item))].min() for item in range(len(database))]
    return [int(bits) for bits in sorted(nearest)[:k]]


@pytest.mark.parametrize("choice", ["agent", "all"])
def test_a_query_may_have_several_codes(client, service, choice):
    body = jpeg(4)
    image = photos.resize(photos.decode(body), small.SIDE)
    query = service.encoder.query(image[None], choice).codes[0]
    answer = client.post(f"/search?k=7&compare=true&query_codes={choice}", files=form(body)).json()
    distances = by_brute_force(service.database, query, 7)
    assert [hit["distance"] for hit in answer["mch"]["hits"]] == distances
    index, own = service.database.index, np.unique(query, axis=0)
    assert answer["mch"]["probed"] == index.search(own, 7).probed.sum()
    for hit in answer["mch"]["hits"]:
        code = np.frombuffer(bytes.fromhex(hit["code"]), np.uint8)
        assert np.bitwise_count(code ^ query).sum(1).min() == hit["distance"]
    whole = client.post("/search?k=7&query_codes=one", files=form(body)).json()
    assert answer["code"] == whole["code"]
    of_item = client.get(f"/search?item=3&k=1&query_codes={choice}").json()
    assert (of_item["mch"]["hits"][0]["item"], of_item["mch"]["hits"][0]["distance"]) == (3, 0)


@pytest.mark.parametrize("choice", ["one", "agent", "all"])
def test_probing_equals_the_index(client, service, choice):
    body, index = jpeg(4), service.database.index
    image = photos.resize(photos.decode(body), small.SIDE)
    query = service.encoder.query(image[None], choice)
    path = f"/probe?limit=50&query_codes={choice}"
    assert client.post(f"{path}&budget=300", files=form(body)).status_code == 422  # at most 256
    answer = client.post(f"{path}&budget=256", files=form(body)).json()
    assert answer["codes"] == len(np.unique(query.codes[0], axis=0))
    for order, margins in (("hamming", np.ones_like(query.margins)), ("gqr", query.margins)):
        found, shown = index.probe(query.codes, margins, 256), answer[order]
        hits = [(hit["item"], b["cost"]) for b in shown["buckets"] for hit in b["hits"]]
        assert [item for item, _ in hits] == found.item.tolist()
        np.testing.assert_allclose([cost for _, cost in hits], found.cost, rtol=1e-4, atol=1e-5)
        assert shown["probed"] == len(shown["buckets"]) == found.probed[0] == 256
        assert shown["nonempty"] == found.nonempty[0] > 0
        assert shown["candidates"] == found.candidates[0]
        assert shown["photos"] == len(found.item) == sum(b["new"] for b in shown["buckets"])
        for bucket in shown["buckets"]:
            code = np.frombuffer(bytes.fromhex(bucket["code"]), np.uint8)
            own = query.codes[0, regions.NAMES.index(bucket["region"])]
            assert np.bitwise_count(code ^ own).sum() == bucket["distance"]
            assert {hit["code"] for hit in bucket["hits"]} <= {bucket["code"]}
    few = client.get(f"/probe?item=3&budget=2&limit=0&query_codes={choice}").json()
    assert few["gqr"]["probed"] == 2
    database = service.database
    (asked,) = database.labels[3:4]
    stored = service.encoder.query(service.stored(3).image[None], choice)
    found = index.probe(stored.codes, stored.margins, 2).item
    assert few["gqr"]["relevant"] == (database.labels[found] & asked).any(1).sum() > 0
    assert answer["gqr"]["relevant"] is None
    assert few["gqr"]["buckets"][0]["new"] > 0
    assert few["gqr"]["buckets"][0]["hits"] == []
    assert few["gqr"]["buckets"][0]["cost"] == 0


@pytest.mark.parametrize("logits", ["false", "true"])
def test_a_photo_of_the_database_finds_itself_first(client, service, logits):
    for item in range(len(service.database)):
        path = f"/search?item={item}&logits={logits}&compare=true"
        for kind, ranking in client.get(f"{path}&k=2").json().items():
            if kind in ("mch", "base"):
                assert (ranking["hits"][0]["item"], ranking["hits"][0]["distance"]) == (item, 0)
    found = client.get(f"/search?item=7&k=200&logits={logits}").json()
    assert len(found["mch"]["hits"]) == len(service.database)
    assert found["base"] is None
    query = service.stored_code(7)
    if logits == "true":
        query = service.encoder.query(service.stored(7).image[None])
    near, _ = service.database.search(query.codes[0], 200, margins=query.margins[0], first=7)
    assert [hit["item"] for hit in found["mch"]["hits"]] == [x.item for x in near]


def test_answers_are_limited_by_label_and_distance(client, service):
    everything = client.get("/search?item=3&k=200&compare=true").json()
    limited = client.get("/search?item=3&k=200&compare=true&label=red&within=1").json()
    for name in ("mch", "base"):
        wanted = [
            hit["item"]
            for hit in everything[name]["hits"]
            if "red" in hit["labels"] and hit["distance"] <= 1
        ]
        assert [hit["item"] for hit in limited[name]["hits"]] == wanted
        assert wanted
    several = client.get("/search?item=3&k=200&label=red&query_codes=all").json()["mch"]["hits"]
    assert {tuple(hit["labels"]) for hit in several} == {("red",)}
    assert len(several) == sum("red" in hit["labels"] for hit in everything["mch"]["hits"])


def test_a_part_of_a_photo_is_a_query(client, service):
    pixels = service.database.photo(3)
    part = service.encoder.query(photos.resize(pixels[5:40, 10:50], small.SIDE)[None])
    code = part.codes[0, 0].tobytes().hex()
    assert client.get("/search?item=3&box=10,5,50,40").json()["code"] == code
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    body = form(stream.getvalue(), "photo.png", "image/png")
    assert client.post("/search?box=10,5,50,40", files=body).json()["code"] == code
    for found in (
        client.get("/encode?item=3&box=10,5,50,999").json(),
        client.post("/encode?box=10,5,50,999", files=body).json(),
    ):
        assert [found["width"], found["height"]] == [pixels.shape[1], pixels.shape[0]]
        assert found["box"] == found["regions"][0]["box"] == [10, 5, 50, pixels.shape[0]]
        assert all(region["box"][0] >= 10 for region in found["regions"])


def test_the_page_learns_what_the_encoder_knows(client, service):
    health = client.get("/health").json()
    assert health["labels"] == list(small.CLASSES)
    assert "of the data set folder" in health["knows"]
    assert "red, green, blue" in health["knows"]
    assert health["examples"] == ["00.jpg", "sub/01.png"]  # the queries
    photo = client.get("/examples/1/photo?side=640")
    assert Image.open(io.BytesIO(photo.content)).size == (72, 48)


def test_encode_gives_six_regions(client, service):
    body = jpeg()
    answer = client.post("/encode", files=form(body)).json()
    image = photos.resize(photos.decode(body), small.SIDE)
    packed, keep_prob = service.encoder.encode_regions(image[None])
    assert [region["region"] for region in answer["regions"]] == list(regions.NAMES)
    code = codes.to_bytes(packed[0], small.NUM_BITS)
    assert [region["code"] for region in answer["regions"]] == [c.tobytes().hex() for c in code]
    np.testing.assert_allclose([r["keep_prob"] for r in answer["regions"]], keep_prob[0], atol=1e-5)
    assert answer["regions"][4]["box"] == [36, 24, 72, 48]
    for region in answer["regions"][1:]:
        assert region["kept"] == (region["keep_prob"] >= 0.5)
    assert client.get("/encode?item=3").status_code == 200


def test_photos_are_turned_upright(client):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = client.post("/encode", files=form(jpeg(exif=exif.tobytes()))).json()
    assert (turned["width"], turned["height"]) == (48, 72)


def test_items_and_thumbnails(client, service):
    listed = client.get("/items?offset=20&limit=5").json()
    assert listed["total"] == len(service.database) == 22
    assert [item["item"] for item in listed["items"]] == [20, 21]
    assert listed["items"][0]["labels"] == [small.CLASSES[(20 + 2) % 3]]
    photo = client.get("/items/20/photo?side=160")
    assert photo.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(photo.content)).size) <= 160
    assert "max-age" in photo.headers["cache-control"]
    tag = {"if-none-match": photo.headers["etag"]}
    again = client.get("/items/20/photo?side=160", headers=tag)
    assert (again.status_code, again.content) == (304, b"")


def test_kept_thumbnails_have_a_size_limit(service, monkeypatch):
    made = thumbnails.Thumbnails(service.database.photo)
    one = len(made.jpeg(0, 160))
    monkeypatch.setattr(thumbnails, "MAX_BYTES", 3 * one)
    for item in range(10):
        made.jpeg(item, 160)
    assert 0 < made._num_bytes <= 3 * one
    assert sum(map(len, made._made.values())) == made._num_bytes


def png_of(width, height, chunks=()):
    """Returns a small PNG that declares many pixels, with further (kind, content) chunks."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    others = b"".join(chunk(*other) for other in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + others + rows + chunk(b"IEND", b"")


TEXT_BOMB = b"k\0\0" + zlib.compress(bytes(20_000_000))  # 20 kB that decompress to 20 MB


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.mark.parametrize(
    ("body", "kind", "status", "reason"),
    [
        (b"", "image/jpeg", 422, "The photo is empty"),
        (b"no image at all", "image/jpeg", 415, "not a photo of a known type"),
        (SVG, "image/svg+xml", 415, "not a photo of a known type"),
        (jpeg()[:900], "image/jpeg", 422, "damaged or cut off"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "image/png", 415, "not a photo of a known type"),
        (png_of(40_000, 40_000), "image/png", 413, "too many pixels"),
        (png_of(1001, 1000), "image/png", 413, "at most 1,000,000 are accepted"),
        (png_of(100, 100, chunks=[(b"zTXt", TEXT_BOMB)]), "image/png", 422, "damaged"),
        (bytes(200_001), "image/jpeg", 413, "The upload is too large; at most 0.19"),
        (bytes(50 * 2**20), "image/jpeg", 413, "The upload is too large"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/search", "/encode", "/probe"])
def test_hostile_uploads_get_a_sentence(client, path, body, kind, status, reason):
    answer = client.post(path, content=body, headers={"content-type": kind})
    assert reason in sentence(answer, status)
    assert reason in sentence(client.post(path, files=form(body, "x.jpg", kind)), status)


def test_other_content_types_are_refused(client):
    answer = client.post("/search", content=b"%PDF-1.7", headers={"content-type": "text/plain"})
    assert "multipart/form-data" in sentence(answer, 415)


def form_with_name(name):
    """Returns the content and headers of a form whose file name is not escaped."""
    head = b'--B\r\nContent-Disposition: form-data; name="photo"; filename="' + name + b'"\r\n'
    body = head + b"Content-Type: image/jpeg\r\n\r\n" + jpeg() + b"\r\n--B--\r\n"
    return {"content": body, "headers": {"content-type": "multipart/form-data; boundary=B"}}


@pytest.mark.parametrize(
    "name", [b"../../etc/passwd", b"/tmp/x.jpg", b"..\\x.jpg", b"a\0b.jpg", b"\0", b"a\x1b[2J.jpg"]
)
def test_file_names_with_a_path_or_control_characters_are_refused(client, name):
    answer = client.post("/encode", **form_with_name(name))
    assert "file name holds a path or a control character" in sentence(answer, 422)


@pytest.mark.parametrize(
    "name", [b"a;b.php", "Größe – 1.jpg".encode(), b"\xff\xfe.jpg", b"x" * 200]
)
def test_other_file_names_are_accepted(client, name):
    answer = client.post("/encode", **form_with_name(name))
    assert answer.status_code == 200, answer.text
    assert answer.json() == client.post("/encode", files=form(jpeg())).json()


def test_a_very_long_file_name_is_refused(client):
    sentence(client.post("/encode", **form_with_name(b"x" * 100_000)), 400)


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/search?item=99", 404, "There is no photo 99; the database has 22, from 0"),
        ("GET", "/items/22", 404, "There is no photo 22"),
        ("GET", "/items/99999999999999999999999", 404, "There is no photo"),
        ("GET", "/items/-1", 422, "item: input should be greater than or equal to 0"),
        ("GET", "/items/..%2f..%2fetc%2fpasswd", 404, "There is nothing at"),
        ("GET", "/items/0/photo?side=5000", 422, "side:"),
        ("GET", "/search?item=0&k=0", 422, "k: input should be greater than or equal to 1"),
        ("GET", "/search?item=0&k=1001", 422, "k: "),
        ("GET", "/search", 422, "item: field required"),
        ("GET", "/search?item=0&label=pink", 422, "There is no label 'pink'; /health lists them"),
        ("GET", "/search?item=0&within=-1", 422, "within: "),
        ("GET", "/search?item=0&box=1,2,3", 422, "box: "),
        ("GET", "/encode?item=0&box=9,0,9,5", 422, "The box has no pixel of the photo, whose size"),
        ("GET", "/examples/2/photo", 404, "There is no example 2; there are 2"),
        ("GET", "/search?item=0&query_codes=two", 422, "query_codes: input should be 'one',"),
        ("GET", "/probe?item=0&budget=0", 422, "budget: input should be greater than or equal"),
        ("GET", "/probe?item=22", 404, "There is no photo 22"),
        ("DELETE", "/items/0", 405, "does not take DELETE"),
        ("GET", "/docs", 404, "There is nothing at /docs"),
        ("POST", "/search", 415, "multipart/form-data"),
    ],
)
def test_wrong_requests_get_a_sentence(client, method, path, status, reason):
    assert reason in sentence(client.request(method, path), status)


def test_a_wrong_method_gets_the_allowed_ones(client):
    assert client.delete("/search").headers["allow"] == "GET, POST"
    assert client.delete("/items/3").headers["allow"] == "GET"


def test_forms_without_a_photo_are_refused(client):
    assert "no file" in sentence(client.post("/search", files={"other": b"x"}), 422)
    broken = client.post("/search", content=b"x", headers={"content-type": "multipart/form-data"})
    sentence(broken, 400)


def test_a_photo_that_is_gone_is_404(client, small_run, service, caplog):
    name = str(service.database.ids[5])
    path = small_run / "photos" / name
    content = path.read_bytes()
    path.unlink()
    try:
        for request in ("/items/5/photo?side=640", "/encode?item=5"):
            error = sentence(client.get(request), 404)
            assert error == "The photo 5 cannot be shown; the server's log says why."
            assert f"'{name}' does not open" in caplog.text
            caplog.clear()
        assert client.get("/search?item=5").status_code == 200
    finally:
        path.write_bytes(content)


def test_page_and_counters(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert (health["photos"], health["num_bits"]) == (22, small.NUM_BITS)
    text = client.get("/metrics").text
    assert 'mch_requests_total{path="/search",status="200"}' in text
    assert 'mch_batch_size_count{kind="whole"}' in text
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/search", "/probe", "/encode", "/items", "/items/{item}", "/items/{item}/photo", "/health",
        "/metrics", "/examples/{example}/photo",
    }  # fmt: skip


def test_the_schema_describes_the_form(client):
    described = client.get("/openapi.json").json()["paths"]["/search"]["post"]["requestBody"]
    for content in described["content"].values():
        schema = content["schema"].get("properties", {"photo": content["schema"]})["photo"]
        assert schema["minLength"] == 1
    assert "empty" in sentence(client.post("/search", files=form(b"")), 422)
    assert "8 other fields" in described["description"]
    others = {f"other{i}": "x" for i in range(8)}
    assert client.post("/search", files=form(jpeg()), data=others).status_code == 200
    more = client.post("/search", files=form(jpeg()), data={**others, "more": "x"})
    assert "Too many fields" in sentence(more, 400)


def test_an_upload_that_stalls_is_refused(service):
    hasty = Service(service.encoder, service.database, "dch", LIMITS._replace(body_seconds=0.3))
    hasty.warm_up()
    head = b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    with small.serving(hasty) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as stalling:
            stalling.sendall(head + b"Content-Length: 9000\r\n\r\nsome bytes")
            answer = stalling.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"The upload took longer than 0.3 seconds." in answer
        assert httpx.get(f"{url}/health", timeout=20).json()["pending"] == 0


def test_a_busy_service_refuses_further_requests(service, monkeypatch):
    """While the device is blocked, further requests get 503; the accepted ones are all answered."""
    released = threading.Event()
    query = type(service.encoder).query
    slow = Service(service.encoder, service.database, "dch", LIMITS)

    def wait_and_encode(self, images):
        released.wait(20)
        return query(self, images)

    monkeypatch.setattr(type(service.encoder), "query", wait_and_encode)

    async def run():
        app = api.create_app(slow)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=30
            ) as client,
        ):
            tasks = [
                asyncio.create_task(client.post("/search", files=form(jpeg(i)))) for i in range(20)
            ]
            done, waiting = await asyncio.wait(tasks, timeout=2)
            assert {task.result().status_code for task in done} == {503}
            assert all(task.result().headers["retry-after"] == "1" for task in done)
            assert len(waiting) == LIMITS.pending == slow.pending
            assert (await client.get("/health")).json()["pending"] == LIMITS.pending
            released.set()
            answers = await asyncio.gather(*waiting)
        assert {answer.status_code for answer in answers} == {200}
        for i, task in enumerate(tasks):  # each answer belongs to its own photo
            if task in waiting:
                image = photos.resize(photos.decode(jpeg(i)), small.SIDE)
                assert (
                    task.result().json()["code"]
                    == query(slow.encoder, image[None]).codes.tobytes().hex()
                )

    asyncio.run(run())
    assert slow.pending == 0
