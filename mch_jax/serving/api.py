"""The JSON API and the page of a run: searching by photo, over HTTP."""

import asyncio
import base64
import contextlib
import enum
import hashlib
import importlib.resources
import io
import re
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from absl import logging
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from PIL import Image, UnidentifiedImageError
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.routing import Match

from mch_jax import __version__, codes, regions
from mch_jax.data import photos
from mch_jax.encoder import Encoder
from mch_jax.serving.catalogue import Catalogue, Neighbour
from mch_jax.serving.gate import Gate, Limits, Refused
from mch_jax.serving.workers import Workers

FREE_PATHS = ("/", "/health", "/metrics", "/openapi.json")
BOX = "left, top, right, bottom in pixels of the upright photo"
CODE = "hex of the code's bytes; bit i of the code is bit i % 8 of byte i // 8"


class Problem(BaseModel):
    """Why a request was refused."""

    error: str = Field(description="one sentence")


class Region(BaseModel):
    """One of a photo's six regions as the agent sees it."""

    region: str = Field(description="whole image, top left, ..., middle")
    box: list[int] = Field(description=BOX)
    code: str = Field(description=CODE)
    keep_prob: float = Field(description="1 for the whole image")
    kept: bool = Field(description="whether the agent would keep the code")
    differs: int = Field(description="bits that differ from the whole image's code")


class Encoded(BaseModel):
    """A photo's codes."""

    width: int
    height: int
    num_bits: int
    keep_threshold: float
    regions: list[Region]


class Hit(BaseModel):
    """An image of the database, and the code that it was found by."""

    item: int = Field(description="row of the database; see /items/{item}")
    id: str = Field(description="the photo's name")
    distance: int = Field(description="bits between the query's code and the nearest of its codes")
    region: str = Field(description="the region whose code that is")
    box: list[int] = Field(description=BOX)
    code: str = Field(description=CODE)
    keep_prob: float
    width: int
    height: int
    labels: list[str]


class Ranking(BaseModel):
    """The nearest images, nearest first, ties in the database's order."""

    probed: int = Field(description="buckets that Algorithm 1 looks at for them, empty ones too")
    nonempty: int = Field(description="how many of these hold anything")
    hits: list[Hit]


class Found(BaseModel):
    """What is nearest to a photo."""

    code: str = Field(description="the whole photo's; " + CODE)
    num_bits: int
    mch: Ranking = Field(description="by all codes of each image")
    base: Ranking | None = Field(None, description="by the whole images' codes alone")


class StoredCode(BaseModel):
    """A code in the database."""

    region: str
    box: list[int] = Field(description=BOX)
    code: str = Field(description=CODE)
    keep_prob: float


class Item(BaseModel):
    """An image of the database."""

    item: int
    id: str
    width: int
    height: int
    labels: list[str]
    codes: list[StoredCode]


class Items(BaseModel):
    """A part of the database."""

    total: int
    items: list[Item]


class Health(BaseModel):
    """What is served."""

    status: str
    method: str
    num_bits: int
    photos: int
    codes: int
    pending: int = Field(description="requests that are worked on or wait")


class Side(enum.IntEnum):
    """The longer side of a thumbnail in pixels."""

    small = 160
    medium = 320
    large = 640


class Upload(NamedTuple):
    """An uploaded photo as the network takes it, with its own width and height."""

    image: np.ndarray
    size: tuple[int, int]


class Metrics:
    """What is counted, for Prometheus."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "mch_requests", "Answers by path and status.", ("path", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "mch_request_seconds", "Time to answer.", ("path",), registry=self.registry
        )
        self.batch = Histogram(
            "mch_batch_size", "Photos that the network sees at once.", ("kind",),
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry,
        )  # fmt: skip
        self.pending = Gauge(
            "mch_pending_requests", "Requests that are worked on or wait.", registry=self.registry
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts one answer."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)


class Service:
    """What the endpoints share.

    Args:
      encoder: of the run.
      catalogue: its database.
      method: name of the base hashing model.
      limits: of requests.
    """

    def __init__(self, encoder: Encoder, catalogue: Catalogue, method: str, limits: Limits):
        self.encoder, self.catalogue, self.method, self.limits = encoder, catalogue, method, limits
        self.metrics = Metrics()
        self.workers = Workers(encoder, lambda kind, n: self.metrics.batch.labels(kind).observe(n))
        file = catalogue.file
        digest = hashlib.sha256(file.codes.tobytes() + "\0".join(file.ids.tolist()).encode())
        self.fingerprint = digest.hexdigest()[:12]
        self.gate: Gate | None = None

    def warm_up(self) -> None:
        """Compiles network and index, so that no request waits for it."""
        self.workers.warm_up()
        if len(self.catalogue):
            self.found(self.catalogue.code(0), 24, compare=True)

    @property
    def pending(self) -> int:
        """Requests that are worked on or wait."""
        return self.gate.pending if self.gate else 0

    def item(self, item: int) -> int:
        """Returns an item that exists; 404 otherwise."""
        if item >= len(self.catalogue):
            raise Refused(
                404, f"There is no photo {item}; the database has {len(self.catalogue):,}, from 0."
            )
        return item

    def describe(self, item: int) -> Item:
        """Returns an image's name, labels and codes."""
        catalogue, file = self.catalogue, self.catalogue.file
        width, height = catalogue.size(item)
        rows = range(int(catalogue.starts[item]), int(catalogue.starts[item + 1]))
        stored = [
            StoredCode(
                region=catalogue.region(row),
                box=file.box[row].tolist(),
                code=file.codes[row].tobytes().hex(),
                keep_prob=float(file.keep_prob[row]),
            )
            for row in rows
        ]
        return Item(
            item=item, id=str(file.ids[item]), width=width, height=height,
            labels=catalogue.labels(item), codes=stored,
        )  # fmt: skip

    def ranking(self, query: np.ndarray, k: int, is_base: bool) -> Ranking:
        """Returns the nearest images to a code."""
        found, hits = self.catalogue.search(query, k, is_base)
        return Ranking(
            probed=int(hits.probed[0]),
            nonempty=int(hits.nonempty[0]),
            hits=[self._hit(neighbour) for neighbour in found],
        )

    def _hit(self, neighbour: Neighbour) -> Hit:
        item, distance, row = neighbour
        file, (width, height) = self.catalogue.file, self.catalogue.size(item)
        return Hit(
            item=item, id=str(file.ids[item]), distance=distance,
            region=self.catalogue.region(row), box=file.box[row].tolist(),
            code=file.codes[row].tobytes().hex(), keep_prob=float(file.keep_prob[row]),
            width=width, height=height, labels=self.catalogue.labels(item),
        )  # fmt: skip

    def found(self, query: np.ndarray, k: int, compare: bool) -> Found:
        """Returns the answer to a search by a code."""
        return Found(
            code=query.tobytes().hex(),
            num_bits=self.catalogue.file.num_bits,
            mch=self.ranking(query, k, is_base=False),
            base=self.ranking(query, k, is_base=True) if compare else None,
        )

    def encoded(self, packed: np.ndarray, keep_prob: np.ndarray, size: tuple[int, int]) -> Encoded:
        """Returns the codes of one photo's regions."""
        num_bits = self.encoder.model.num_bits
        code_set = self.encoder.code_set(packed[None], keep_prob[None], np.array([size]))
        code = codes.to_bytes(packed, num_bits)
        differs = np.bitwise_count(code ^ code[:1]).sum(1)
        return Encoded(
            width=size[0],
            height=size[1],
            num_bits=num_bits,
            keep_threshold=self.encoder.keep_threshold,
            regions=[
                Region(
                    region=name,
                    box=code_set.box[0, slot].tolist(),
                    code=code[slot].tobytes().hex(),
                    keep_prob=float(code_set.keep_prob[0, slot]),
                    kept=bool(code_set.kept[0, slot]),
                    differs=int(differs[slot]),
                )
                for slot, name in enumerate(regions.NAMES)
            ],
        )

    def prepare(self, body: bytes) -> Upload:
        """Decodes an uploaded photo, turned upright, and squashes it to the encoder's size."""
        most = self.limits.pixels
        too_many = Refused(413, f"The photo has too many pixels; at most {most:,} are accepted.")
        try:
            with Image.open(io.BytesIO(body), formats=photos.FORMATS) as image:
                if image.width * image.height > most:
                    raise too_many
        except UnidentifiedImageError:
            raise Refused(
                415, f"The upload is not a photo of a known type ({', '.join(photos.FORMATS)})."
            ) from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise too_many from None
        except photos.DAMAGED:
            raise Refused(422, "The photo is damaged: its header cannot be read.") from None
        try:
            pixels = photos.decode(body, "photo")
        except ValueError:
            raise Refused(422, "The photo is damaged or cut off and does not decode.") from None
        height, width, _ = pixels.shape
        return Upload(photos.resize(pixels, self.encoder.image_size), (width, height))

    def stored(self, item: int) -> Upload:
        """Returns a photo of the database as if it had been uploaded."""
        try:
            pixels = self.catalogue.photo(item)
        except ValueError as error:
            raise Refused(404, f"The photo cannot be shown: {error}.") from None
        height, width, _ = pixels.shape
        return Upload(photos.resize(pixels, self.encoder.image_size), (width, height))


async def _uploaded(request: Request) -> bytes:
    """Returns the bytes of the photo in a request.

    A form's photo is the field `photo`; any other body is the photo itself. The name that a form
    gives it is used for nothing; one that no file can have, or that leads elsewhere, is refused.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=_MAX_FIELDS) as form:
            file = form.get("photo")
            if not isinstance(file, UploadFile):
                raise Refused(422, "The form has no file in its field 'photo'.")
            if re.search(r"[/\\\x00-\x1f\x7f]", file.filename or ""):
                raise Refused(
                    422,
                    "The photo's file name holds a path or a control character; send a bare name.",
                )
            body = await file.read()
    elif kind.startswith("image/") or kind == "application/octet-stream":
        body = await request.body()
    else:
        raise Refused(
            415,
            "Send the photo as multipart/form-data in the field 'photo', or as the body with its "
            "own type, such as image/jpeg.",
        )
    if not body:
        raise Refused(422, "The photo is empty.")
    return body


def _service(request: Request) -> Service:
    return request.app.state.service


_Service = Annotated[Service, Depends(_service)]
_Item = Annotated[int, Path(ge=0, description="row of the database")]
_ByItem = Annotated[int, Query(ge=0, description="row of the database")]
_K = Annotated[int, Query(ge=1, le=200, description="how many images")]
_Compare = Annotated[bool, Query(description="also search by the base model's single codes")]
_MAX_FIELDS = 8  # of a form, besides the photo
_BINARY = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
_PHOTO: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "a photo: JPEG, PNG, WebP, GIF, TIFF, BMP, PPM or JPEG 2000; a form may "
        f"have {_MAX_FIELDS} other fields, which are ignored",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["photo"],
                    "properties": {"photo": _BINARY["schema"]},
                }
            },
            "image/*": _BINARY,
            "application/octet-stream": _BINARY,
        },
    }
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    reasons = {
        400: "The form cannot be read.",
        404: "There is no such photo.",
        408: "The upload took too long.",
        413: "The upload is too large, or the photo has too many pixels.",
        415: "The upload is not a photo of a known type.",
        422: "A parameter is out of range, or the photo is damaged.",
        503: "The server is busy; the header Retry-After says for how long.",
    }
    return {s: {"model": Problem, "description": reasons[s]} for s in (*statuses, 503)}


_UPLOAD_REFUSALS = _refusals(400, 408, 413, 415, 422)
router = APIRouter()


@router.post(
    "/search", summary="Search by a photo", openapi_extra=_PHOTO, responses=_UPLOAD_REFUSALS
)
async def search(
    request: Request, service: _Service, k: _K = 24, compare: _Compare = False
) -> Found:
    """Returns the images of the database that are nearest to an uploaded photo."""
    body = await _uploaded(request)
    upload = await asyncio.to_thread(service.prepare, body)
    query = await service.workers.encode(upload.image)
    return await asyncio.to_thread(service.found, query, k, compare)


@router.get("/search", summary="Search by an image of the database", responses=_refusals(404, 422))
async def search_item(
    service: _Service, item: _ByItem, k: _K = 24, compare: _Compare = False
) -> Found:
    """Returns the images of the database that are nearest to one of them, itself among them."""
    query = service.catalogue.code(service.item(item))
    return await asyncio.to_thread(service.found, query, k, compare)


@router.post("/encode", summary="Encode a photo", openapi_extra=_PHOTO, responses=_UPLOAD_REFUSALS)
async def encode(request: Request, service: _Service) -> Encoded:
    """Returns codes and keep probabilities of the six regions of an uploaded photo."""
    body = await _uploaded(request)
    upload = await asyncio.to_thread(service.prepare, body)
    packed, keep_prob = await service.workers.encode_regions(upload.image)
    return service.encoded(packed, keep_prob, upload.size)


@router.get("/encode", summary="Encode an image of the database", responses=_refusals(404, 422))
async def encode_item(service: _Service, item: _ByItem) -> Encoded:
    """Returns codes and keep probabilities of the six regions of an image of the database."""
    upload = await asyncio.to_thread(service.stored, service.item(item))
    packed, keep_prob = await service.workers.encode_regions(upload.image)
    return service.encoded(packed, keep_prob, upload.size)


@router.get("/items", summary="List images of the database", responses=_refusals(422))
async def items(
    service: _Service,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 24,
) -> Items:
    """Returns a part of the database, in its order."""
    total = len(service.catalogue)
    rows = range(min(offset, total), min(offset + limit, total))
    return Items(total=total, items=[service.describe(item) for item in rows])


@router.get("/items/{item}", summary="An image of the database", responses=_refusals(404, 422))
async def one_item(service: _Service, item: _Item) -> Item:
    """Returns an image's name, size, labels and codes."""
    return service.describe(service.item(item))


@router.get(
    "/items/{item}/photo",
    summary="A thumbnail",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": _BINARY}, "description": "A JPEG."},
        304: {"description": "The client's copy is still right."},
        **_refusals(404, 422),
    },
)
async def photo(
    request: Request, service: _Service, item: _Item, side: Side = Side.medium
) -> Response:
    """Returns an image of the database as a JPEG whose longer side is at most `side`."""
    service.item(item)
    tag = f'"{service.fingerprint}-{item}-{side.value}"'
    headers = {"ETag": tag, "Cache-Control": "public, max-age=3600"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    try:
        content = await asyncio.to_thread(service.catalogue.thumbnail, item, side.value)
    except ValueError as error:
        raise Refused(404, f"The photo cannot be shown: {error}.") from None
    return Response(content, media_type="image/jpeg", headers=headers)


@router.get("/health", summary="Whether it works, and what is served")
async def health(service: _Service) -> Health:
    """Returns what is served; it answers once network and index are compiled."""
    catalogue = service.catalogue
    return Health(
        status="ok", method=service.method, num_bits=catalogue.file.num_bits,
        photos=len(catalogue), codes=len(catalogue.file.codes), pending=service.pending,
    )  # fmt: skip


@router.get(
    "/metrics",
    summary="Counters for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(service: _Service) -> Response:
    """Returns counters and histograms as Prometheus reads them."""
    service.metrics.pending.set(service.pending)
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _policy(page: str) -> str:
    """Returns a content security policy that lets in the page's own style and script alone."""

    def source(tag: str) -> str:
        found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (hashlib.sha256(text.encode()).digest() for text in found)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _methods(routes: Sequence[Any], request: Request) -> list[str]:
    """Returns the methods that a path takes; Starlette names those of its first route alone."""
    matching = [route for route in routes if route.matches(request.scope)[0] != Match.NONE]
    return sorted(set().union(*(route.methods for route in matching)))


def create_app(service: Service) -> FastAPI:
    """Returns the ASGI application of a service."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.workers.start()
        yield
        await service.workers.stop()  # what was accepted is answered

    app = FastAPI(
        title="mch_jax",
        version=__version__,
        description="Image retrieval with several binary codes per image.",
        lifespan=lifespan,
        docs_url=None,  # these two load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(router)
    page = (importlib.resources.files("mch_jax.serving") / "serve.html").read_text("utf-8")
    policy = _policy(page)

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
        return HTMLResponse(page, headers=headers)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse({"error": error.reason}, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        sentences = {
            404: f"There is nothing at {request.url.path}; see /openapi.json.",
            405: f"The path {request.url.path} does not take {request.method}; see /openapi.json.",
        }
        text, headers = sentences.get(error.status_code, str(error.detail)), error.headers
        if error.status_code == 405:
            headers = {"Allow": ", ".join(_methods(router.routes, request))}
        return JSONResponse({"error": text.rstrip(".") + "."}, error.status_code, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name, message = first["loc"][-1], first["msg"]
        return JSONResponse({"error": f"{name}: {message[0].lower()}{message[1:]}."}, 422)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        logging.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse({"error": "The server failed; its log says why."}, 500)

    def gate(inner: Any) -> Gate:
        service.gate = Gate(
            inner, service.limits, FREE_PATHS.__contains__, service.metrics.answered
        )
        return service.gate

    app.add_middleware(gate)
    return app
