"""The ASGI application: routes, middleware and error responses put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from producer.web import openapi, responses
from producer.web.a1111 import controlnet as a1111_controlnet
from producer.web.a1111 import lists as a1111_lists
from producer.web.a1111 import routes as a1111
from producer.web.accept import wants_page
from producer.web.addresses import Addresses
from producer.web.api import batches, events, generate, health, jobs, models, trainings
from producer.web.compression import Compression
from producer.web.facade import Facade
from producer.web.guard import Guard
from producer.web.metrics import MetricsMiddleware
from producer.web.openai import batches as openai_batches
from producer.web.openai import errors as openai_errors
from producer.web.openai import files as openai_files
from producer.web.openai import images as openai_images
from producer.web.openai.batch_input import Tally
from producer.web.pages import models as model_pages
from producer.web.pages import routes as pages
from producer.web.pages import trainings as training_pages
from producer.web.pages.gallery import Gallery
from producer.web.settings import FacadeSettings
from producer.web.shutdown import ShutdownMiddleware
from schemas.errors import DreamError

ABOUT = """Draws pictures from prompts and from other pictures.

POST one of the three request bodies to `/generate/` and get the pictures in the response. Or queue requests as jobs
and batches, and get the results later. Requests and results are kept in an object store, so nothing is lost when
this server restarts.
"""
ROUTERS = tuple(
    module.router
    for module in (
        *(generate, jobs, batches, trainings, models, events),
        *(openai_images, openai_files, openai_batches, a1111, a1111_lists, a1111_controlnet),
        *(health, pages, model_pages, training_pages),
    )
)
ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
#: Addresses that only programs send to, and the page that a browser means by them.
PAGES = {"/batches": "/b"}


def create_app(settings: FacadeSettings) -> FastAPI:
    """The facade over one store, as an ASGI application."""
    facade = Facade(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with facade.client:
            yield

    app = FastAPI(
        title="Dreamdrop",
        version=version("dreamdrop"),
        description=ABOUT,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=openapi.operation_id,
    )
    app.state.facade, app.state.gallery = facade, Gallery(facade)
    app.state.checkpoints = {}  # key's name to the model that it set, see `a1111_lists`
    app.state.tally = Tally()
    for router in ROUTERS:
        app.include_router(router)
    _mount_files(app)
    app.add_exception_handler(DreamError, _error_response)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Prefer", "X-API-Key"],
            expose_headers=["Location", "Retry-After"],
        )
    # The last one added is the outermost.
    app.add_middleware(Compression)
    app.add_middleware(Addresses, with_slash={path for route in ROUTES if (path := route.path).endswith("/")})
    app.add_middleware(ShutdownMiddleware)  # inside the guard, so that its 503 has the security headers too
    app.add_middleware(Guard, hosts=settings.hosts, origins=settings.origins)
    app.add_middleware(MetricsMiddleware, metrics=facade.metrics)  # outermost: it counts refused requests too
    return app


def _mount_files(app: FastAPI) -> None:
    """Serve the pages' scripts and styles, and Swagger UI."""
    app.mount("/static", pages.Files(directory=pages.HERE / "static"), name="static")
    swagger = Path(fastapi_offline.__file__).parent / "static"
    app.mount("/swagger", StaticFiles(directory=swagger), name="swagger")


async def _error_response(request: Request, error: Exception) -> Response:
    """The response for an error, in OpenAI's shape under `/v1`."""
    assert isinstance(error, DreamError)
    if wants_page(request):
        status, _, headers = responses.error_parts(error)
        return pages.error_page(request, status, responses.message_for(error), headers)
    if openai_errors.is_openai_path(request):
        return openai_errors.error_response(error)
    status, body, headers = responses.error_parts(error)
    return JSONResponse(body, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """The response for an `HTTPException`: for browsers a page, else JSON."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        error.headers = {**(error.headers or {}), "Allow": ", ".join(_methods(request))}
        if request.method in ("GET", "HEAD") and wants_page(request) and request.url.path in PAGES:
            return RedirectResponse(PAGES[request.url.path], 303)
    if wants_page(request):
        text = str(error.detail)
        if text == HTTPStatus(error.status_code).phrase:  # the framework's own: no route has this address
            text = (
                f"There is no page at {request.url.path[:200]}." if error.status_code == 404 else f"{text}."
            )
        return pages.error_page(request, error.status_code, text, dict(error.headers or {}))
    return await openai_errors.http_error(request, error)


def _methods(request: Request) -> list[str]:
    """The methods of a path, over all of its routes."""
    found: set[str] = set()
    for route in ROUTES:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    found = found or {"GET"}  # a folder of files
    return sorted(found | ({"HEAD"} if "GET" in found else set()))


async def _invalid_parameter(request: Request, error: Exception) -> Response:
    """The response for a query parameter that FastAPI refuses."""
    assert isinstance(error, RequestValidationError)
    if wants_page(request):
        first = error.errors()[0]
        return pages.error_page(request, 422, f"{first['loc'][-1]}: {first['msg']}")
    return await openai_errors.invalid_parameter(request, error)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            tags=openapi.TAGS,
        )
        openai_errors.drop_422(document)
        facade: Facade = app.state.facade
        if facade.settings.keys:
            document["components"]["securitySchemes"] = openapi.SECURITY
            document["security"] = [{name: []} for name in openapi.SECURITY]
        schemas = document["components"]["schemas"]
        for name, schema in openapi.components().items():
            schemas.setdefault(name, schema)
        app.openapi_schema = document
    return app.openapi_schema
