"""The HTTP API and the page of a service: its endpoints, and how errors are answered."""

import asyncio
import base64
import contextlib
import hashlib
import importlib.resources
import re
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

import numpy as np
from absl import logging
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from mch_jax import __version__
from mch_jax.serving import counters, uploads
from mch_jax.serving.decoders import Box
from mch_jax.serving.gate import Gate
from mch_jax.serving.limits import Refused
from mch_jax.serving.schemas import (
    Choice,
    Encoded,
    Found,
    Health,
    Item,
    Items,
    Probed,
    Problem,
    Side,
)
from mch_jax.serving.service import Options, Service

FREE_PATHS = ("/", "/health", "/metrics", "/openapi.json")  # answered however busy the service is


def _service(request: Request) -> Service:
    return request.app.state.service


_Service = Annotated[Service, Depends(_service)]
_Item = Annotated[int, Path(ge=0, description="row of the database")]
_ByItem = Annotated[int, Query(ge=0, description="row of the database")]
_K = Annotated[int, Query(ge=1, le=1000, description="number of photos to return")]
_Choice = Annotated[
    Choice | None, Query(description="codes of the query; the server's default if left out")
]
_Budget = Annotated[int, Query(ge=1, le=256, description="number of buckets to look at")]
_Limit = Annotated[int, Query(ge=0, le=50, description="photos to list for each bucket")]
_Logits = Annotated[
    bool, Query(description="order photos at equal distance by the logits of the photo, read anew")
]
_Compare = Annotated[bool, Query(description="also search by the base model's single codes")]
_Within = Annotated[int | None, Query(ge=0, le=1024, description="largest distance in bits")]
_Label = Annotated[str | None, Query(max_length=200, description="a class that all photos have")]
_BoxText = Annotated[
    str | None,
    Query(
        pattern=r"^\d{1,6}(,\d{1,6}){3}$",
        description="part of the photo to search by: left,top,right,bottom in pixels of the "
        "upright photo; the whole photo if left out",
    ),
]


def _options(
    service: _Service,
    k: _K = 24,
    compare: _Compare = False,
    query_codes: _Choice = None,
    within: _Within = None,
    label: _Label = None,
) -> Options:
    return service.options(k, compare, query_codes, within, label)


def _box(box: _BoxText = None) -> Box | None:
    if box is None:
        return None
    left, top, right, bottom = map(int, box.split(","))
    return left, top, right, bottom


_Options = Annotated[Options, Depends(_options)]
_Box = Annotated[Box | None, Depends(_box)]


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the description of refusals with these statuses, and with 503."""
    reasons = {
        400: "The form cannot be read, or the host is not an allowed one.",
        404: "There is no such photo.",
        408: "The upload took too long.",
        413: "The upload is too large, or the photo takes too much time or memory to decode.",
        415: "The upload is not a photo of a known type.",
        422: "A parameter is out of range, or the photo is damaged.",
        503: "The server is busy; the header Retry-After says for how long.",
    }
    return {s: {"model": Problem, "description": reasons[s]} for s in (*statuses, 503)}


_UPLOAD_REFUSALS = _refusals(400, 408, 413, 415, 422)
_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": uploads.BINARY}, "description": "A JPEG."},
    **_refusals(404, 422),
}

router = APIRouter()


@router.post(
    "/search",
    summary="Search by a photo",
    openapi_extra=uploads.OPENAPI,
    responses=_UPLOAD_REFUSALS,
)
async def search(request: Request, service: _Service, options: _Options, box: _Box) -> Found:
    """Returns the photos of the database that are nearest to an uploaded photo."""
    body = await uploads.read(request)
    query = await service.decoders.decode(body, request.is_disconnected, box)
    asked = await service.workers.query(query.image, options.query_codes)
    return await asyncio.to_thread(service.search, asked, options)


@router.get("/search", summary="Search by a photo of the database", responses=_refusals(404, 422))
async def search_item(
    service: _Service, item: _ByItem, options: _Options, box: _Box, logits: _Logits = False
) -> Found:
    """Returns the photos of the database that are nearest to one of them, that one first.

    With a box, the photo has no special place among the answers.
    """
    asked, choice = service.stored_code(service.existing(item)), options.query_codes
    if box is not None:
        query = await asyncio.to_thread(service.stored, item, box)
        asked = await service.workers.query(query.image, choice)
        return await asyncio.to_thread(service.search, asked, options)
    if logits or choice != Choice.one:
        query = await asyncio.to_thread(service.stored, item)
        encoded = await service.workers.query(query.image, choice)
        codes = np.concatenate([asked.codes, encoded.codes[:, 1:]], 1)
        asked = encoded._replace(codes=codes)
    return await asyncio.to_thread(service.search, asked, options, item)


@router.post(
    "/probe",
    summary="The buckets that a search by a photo looks at",
    openapi_extra=uploads.OPENAPI,
    responses=_UPLOAD_REFUSALS,
)
async def probe(
    request: Request,
    service: _Service,
    box: _Box,
    budget: _Budget = 33,
    limit: _Limit = 12,
    query_codes: _Choice = None,
) -> Probed:
    """Returns the first buckets by Hamming and by quantization distance, with their photos."""
    body = await uploads.read(request)
    query = await service.decoders.decode(body, request.is_disconnected, box)
    asked = await service.workers.query(query.image, query_codes or service.query_codes)
    return await asyncio.to_thread(service.probe, asked, budget, limit)


@router.get(
    "/probe",
    summary="The buckets that a search by a photo of the database looks at",
    responses=_refusals(404, 422),
)
async def probe_item(
    service: _Service,
    item: _ByItem,
    box: _Box,
    budget: _Budget = 33,
    limit: _Limit = 12,
    query_codes: _Choice = None,
) -> Probed:
    """Returns the first buckets by Hamming and by quantization distance, with their photos."""
    query = await asyncio.to_thread(service.stored, service.existing(item), box)
    asked = await service.workers.query(query.image, query_codes or service.query_codes)
    return await asyncio.to_thread(service.probe, asked, budget, limit, item)


@router.post(
    "/encode", summary="Encode a photo", openapi_extra=uploads.OPENAPI, responses=_UPLOAD_REFUSALS
)
async def encode(request: Request, service: _Service, box: _Box) -> Encoded:
    """Returns codes and keep probabilities of the six regions of an uploaded photo."""
    body = await uploads.read(request)
    query = await service.decoders.decode(body, request.is_disconnected, box)
    packed, keep_prob = await service.workers.encode_regions(query.image)
    return service.encoded(packed, keep_prob, query)


@router.get("/encode", summary="Encode a photo of the database", responses=_refusals(404, 422))
async def encode_item(service: _Service, item: _ByItem, box: _Box) -> Encoded:
    """Returns codes and keep probabilities of the six regions of a photo of the database."""
    query = await asyncio.to_thread(service.stored, service.existing(item), box)
    packed, keep_prob = await service.workers.encode_regions(query.image)
    return service.encoded(packed, keep_prob, query)


@router.get("/items", summary="List photos of the database", responses=_refusals(422))
async def items(
    service: _Service,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 24,
) -> Items:
    """Returns consecutive photos of the database."""
    total = len(service.database)
    rows = range(min(offset, total), min(offset + limit, total))
    return Items(total=total, items=[service.describe(item) for item in rows])


@router.get("/items/{item}", summary="A photo of the database", responses=_refusals(404, 422))
async def one_item(service: _Service, item: _Item) -> Item:
    """Returns a photo's name, size, labels and codes."""
    return service.describe(service.existing(item))


@router.get(
    "/items/{item}/photo",
    summary="A thumbnail",
    response_class=Response,
    responses={**_JPEG, 304: {"description": "The client's copy is up to date."}},
)
async def photo(
    request: Request, service: _Service, item: _Item, side: Side = Side.medium
) -> Response:
    """Returns a photo of the database as a JPEG whose longer side is at most `side`."""
    service.existing(item)
    tag = f'"{service.fingerprint}-{item}-{side.value}"'
    headers = {"ETag": tag, "Cache-Control": "public, max-age=3600"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    content = await asyncio.to_thread(service.thumbnail, item, side.value)
    return Response(content, media_type="image/jpeg", headers=headers)


@router.get(
    "/examples/{example}/photo",
    summary="A photo to search with",
    response_class=Response,
    responses=_JPEG,
)
async def example_photo(
    service: _Service, example: Annotated[int, Path(ge=0)], side: Side = Side.medium
) -> Response:
    """Returns an example as a JPEG whose longer side is at most `side`."""
    content = await asyncio.to_thread(service.example, example, side.value)
    return Response(content, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})


@router.get("/health", summary="Whether the service works, and what it serves")
async def health(service: _Service) -> Health:
    """Returns what is served. It answers once the network and the index are compiled."""
    return service.health()


@router.get(
    "/metrics",
    summary="Counters for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(service: _Service) -> Response:
    """Returns counters and histograms in Prometheus' text format."""
    return Response(service.counters.text(service.pending), media_type=counters.CONTENT_TYPE)


def create_app(service: Service) -> FastAPI:
    """Returns the ASGI application of a service."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.decoders.start()
        service.workers.start()
        yield
        await service.workers.stop()  # after it has answered what it accepted
        service.decoders.stop()

    app = FastAPI(
        title="mch_jax",
        version=__version__,
        description="Image retrieval with several binary codes per image.",
        lifespan=lifespan,
        docs_url=None,  # these two pages load their scripts from other hosts
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(router)
    _add_page(app)
    _add_error_handlers(app)

    def gate(inner: Any) -> Gate:
        service.gate = Gate(
            inner, service.limits, FREE_PATHS.__contains__, service.counters.count_answer
        )
        return service.gate

    app.add_middleware(gate)
    return app


def _add_page(app: FastAPI) -> None:
    page = (importlib.resources.files("mch_jax.serving") / "serve.html").read_text("utf-8")
    policy = _content_security_policy(page)

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
        return HTMLResponse(page, headers=headers)


def _content_security_policy(page: str) -> str:
    """Returns a policy that allows only the style and the script inside the page itself."""

    def source(tag: str) -> str:
        found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (hashlib.sha256(text.encode()).digest() for text in found)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {source('script')}; style-src {source('style')}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _add_error_handlers(app: FastAPI) -> None:
    """Makes every error an object of the schema `Problem`."""

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
            headers = {"Allow": ", ".join(_allowed_methods(router.routes, request))}
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


def _allowed_methods(routes: Sequence[Any], request: Request) -> list[str]:
    """Returns the methods that a path accepts; Starlette names those of its first route only."""
    matching = [route for route in routes if route.matches(request.scope)[0] != Match.NONE]
    return sorted(set().union(*(route.methods for route in matching)))
