"""The application: routes, guards and the words of errors, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fastapi_offline
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from producer.web import openapi, responses
from producer.web.a1111 import lists as a1111_lists
from producer.web.a1111 import routes as a1111
from producer.web.api import batches, generate, health, jobs
from producer.web.facade import Facade
from producer.web.guard import Guard
from producer.web.metrics import Measured
from producer.web.openai import batches as openai_batches
from producer.web.openai import errors as openai_errors
from producer.web.openai import files as openai_files
from producer.web.openai import images as openai_images
from producer.web.openai.batch_input import Tally
from producer.web.pages import routes as pages
from producer.web.pages.gallery import Gallery
from producer.web.settings import FacadeSettings
from producer.web.shutdown import Leaving
from schemas.errors import DreamError

ABOUT = """Draw pictures from words and from pictures.

POST one of the three documented bodies to `/generate/` and get the pictures in the answer; or queue requests
as jobs and batches, and look when they are over. Everything lies in an object store, where workers draw it:
what was queued is not lost when this server is restarted.
"""


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
    )
    app.state.facade, app.state.gallery = facade, Gallery(facade)
    app.state.checkpoints = {}  # by key's name, see `a1111_lists`
    app.state.tally = Tally()
    for router in (
        *(generate, jobs, batches, openai_images, openai_files, openai_batches, a1111, a1111_lists),
        *(health, pages),
    ):
        app.include_router(router.router)
    _mount_files(app)
    app.add_exception_handler(DreamError, _told)
    app.add_exception_handler(HTTPException, openai_errors.http_error)
    app.add_exception_handler(RequestValidationError, openai_errors.invalid)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Prefer", "X-API-Key"],
            expose_headers=["Location", "Retry-After"],
        )
    app.add_middleware(Leaving)
    app.add_middleware(Guard, hosts=settings.hosts, origins=settings.origins)
    app.add_middleware(Measured, metrics=facade.metrics)
    return app


def _mount_files(app: FastAPI) -> None:
    """Scripts and styles of the pages, and Swagger UI, from this server."""
    app.mount("/static", pages.Files(directory=pages.HERE / "static"), name="static")
    swagger = Path(fastapi_offline.__file__).parent / "static"
    app.mount("/swagger", StaticFiles(directory=swagger), name="swagger")


async def _told(request: Request, fault: Exception) -> Response:
    """An error in the words and the shape that this route's callers expect."""
    assert isinstance(fault, DreamError)
    if openai_errors.is_theirs(request):
        return openai_errors.told(fault)
    status, body, headers = responses.error(fault)
    return JSONResponse(body, status, headers)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        openai_errors.tidy(document)
        known = document.setdefault("components", {}).setdefault("schemas", {})
        for name, schema in openapi.components().items():
            known.setdefault(name, schema)
        app.openapi_schema = document
    return app.openapi_schema
