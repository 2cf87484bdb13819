"""The routes of the web pages.

Pages work as plain HTML. A page that changes fetches itself again, and `static/live.js` takes over the parts that
changed, so HTML is written in the templates only, which escape everything that comes from a request.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.types import Scope

from infra.claims.kept_request import with_request
from producer.models.known import defaults_of_card, state_of
from producer.overview import defaults_of
from producer.request_state import read_result
from producer.web import responses
from producer.web.caller import Caller, FacadeOf, own_id, result_of
from producer.web.facade import LATEST
from producer.web.guard import POLICY
from producer.web.pages import items
from producer.web.pages.gallery import BATCHES, ROWS, Gallery
from producer.web.pages.items import Grid, items_of, picture_path
from schemas import samplers
from schemas.defaults import ModelDefaults
from schemas.errors import DreamError
from schemas.result import Result

HERE = Path(__file__).parent
PER_PAGE = 48  # requests in the gallery
PARAMETER_NAMES = {"cfg_scale": "Guidance", "model_revision": "Revision"}
HIDDEN = {"notes", "seeds", "prompt"}  # parameters that the page of a picture shows outside the table
#: Swagger UI sets styles on its elements, and its style sheet holds small pictures.
DOCS_POLICY = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")

templates = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.globals.update(duration=items.duration, picture_path=picture_path, job_path=responses.job_path)
templates.filters.update(
    path=quote,
    text=items.text_of,
    first_sentence=items.first_sentence,
    label=lambda name: PARAMETER_NAMES.get(name, name.replace("_", " ").capitalize()),
    status=lambda status: items.STATUS_NAMES.get(status, status),
)


class Page(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_with_error_page(request: Request) -> Response:
            try:
                return await handle(request)
            except DreamError as error:
                status, _, headers = responses.error_parts(error)
                return error_page(request, status, responses.message_for(error), headers)
            except HTTPException as error:
                if error.status_code == 401:
                    raise  # makes the browser ask for the key
                return error_page(request, error.status_code, str(error.detail))

        return handle_with_error_page


router = APIRouter(route_class=Page, include_in_schema=False)


class Files(StaticFiles):
    """Scripts and styles: browsers keep them, and ask each time whether they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def gallery_of(request: Request) -> Gallery:
    gallery: Gallery = request.app.state.gallery
    return gallery


GalleryOf = Annotated[Gallery, Depends(gallery_of)]


def page(
    request: Request, name: str, code: int = 200, headers: dict[str, str] | None = None, /, **context: Any
) -> Response:
    """A page; 304 when it has not changed since the browser last fetched it."""
    text = templates.get_template(name).render(context)
    etag = f'"{sha256(text.encode()).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", **(headers or {})}
    if code == 200 and request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return HTMLResponse(text, code, headers)


def error_page(request: Request, status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """An error for people, at any address."""
    return page(request, "error.html", status, headers, status=status, text=text)


def _shown(results: Iterable[Result]) -> list[Result]:
    """Those that the gallery shows: no batches, whose rows it shows, and no canaries."""
    return [result for result in results if items_of(result) and not items.is_canary(result)]


async def _latest(gallery: Gallery, caller: Caller, id: str) -> list[Result]:
    """The latest results with pictures; `id` is among them even if it finished a moment ago."""
    for read in (gallery.overview, gallery.read_overview):
        latest = _shown((await read(caller.id_prefix)).latest)
        if any(result.id == id for result in latest):
            break
    return latest


async def _live_parts(
    gallery: Gallery, caller: Caller, before: str | None, now: bool = False
) -> dict[str, Any]:
    """The context of the queue and the gallery.

    Args:
        before: show the results that are older than this one.
        now: do not use the cached overview.
    """
    overview = await (gallery.read_overview if now else gallery.overview)(caller.id_prefix)
    latest = _shown(overview.latest)
    if before:
        latest = await _latest(gallery, caller, before)
    start = next((n + 1 for n, result in enumerate(latest) if result.id == before), 0)
    page = latest[start : start + PER_PAGE]
    more = len(latest) > start + PER_PAGE
    queue = await gallery.queue(overview, caller)
    return {
        "workers": len(await gallery.facade.workers()),
        "queue": queue,
        "hidden": sum(map(caller.sees, (*overview.queued, *overview.processing))) - len(queue),
        "items": [item for result in page for item in items_of(result)],
        "older": page[-1].id if more and page else "",
        "most": LATEST if not more and overview.over > LATEST else 0,
        "before": before or "",
    }


@router.get("/")
async def home(
    request: Request,
    facade: FacadeOf,
    gallery: GalleryOf,
    caller: Caller,
    before: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:
    """The form, the queue and the latest pictures; with `before`, a page of older pictures."""
    heartbeats = await facade.workers()
    models = {name for heartbeat in heartbeats for name in _strings(heartbeat.get("models"))}
    default = {str(name) for heartbeat in heartbeats if (name := heartbeat.get("default_model"))}
    published = await gallery.models()
    defaults = {name: defaults_of(heartbeats, name) for name in models}
    defaults |= {item.card.name: defaults_of_card(item.card, heartbeats) for item in published}
    return page(
        request,
        "home.html",
        models=sorted(models - {item.card.name for item in published}),
        published=published,
        states={name: state_of(heartbeats, name) for name in models},
        default_model=", ".join(sorted(default)),
        defaults=defaults | {"": ModelDefaults.common(defaults_of(heartbeats, name) for name in default)},
        schedulers=samplers.names(),
        limits=facade.settings.limits,
        **await _live_parts(gallery, caller, before),
    )


def _strings(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


@router.get("/live")
async def live(request: Request, gallery: GalleryOf, caller: Caller, now: bool = False) -> Response:
    """The parts of the first page that change, as a fragment for `static/live.js`."""
    return page(request, "live.html", **await _live_parts(gallery, caller, None, now))


@router.get("/pictures/{id:path}")
async def picture(
    id: str, request: Request, facade: FacadeOf, gallery: GalleryOf, caller: Caller
) -> Response:
    """One request: its pictures and its recipe, or its progress."""
    id = own_id(caller, id)
    state = await facade.state(id)
    result = state.result
    if result is not None and result.batch is not None:
        return Response(status_code=307, headers={"Location": f"/b/{quote(id)}"})
    if (
        result is not None and not result.parameters
    ):  # it ended before it had a plan: only its request says more
        result = await with_request(facade.client.store, result)
    shown = items_of(result) if result else []
    newer, older = items.neighbours(await _latest(gallery, caller, id), id)
    batch = id.rpartition("/")[0]
    return page(
        request,
        "picture.html",
        id=id,
        state=state,
        result=result,
        items=shown,
        prompt=shown[0].prompt if shown else (await gallery.prompt_of(id))[0],
        table=items.recipe_table(result.parameters, HIDDEN) if result else {},
        recipe=json.dumps(_recipe(result), indent=2, ensure_ascii=False) if result else "",
        again=result is not None and items.can_repeat(result),
        own_fault=result is not None and items.is_own_fault(result),
        newer=newer,
        older=older,
        batch=batch if batch and await _is_finished_batch(facade, batch) else "",
    )


async def _is_finished_batch(facade: FacadeOf, id: str) -> bool:
    result = await read_result(facade.client.store, id)
    return result is not None and result.batch is not None


def _recipe(result: Result) -> dict[str, Any]:
    parameters = {name: value for name, value in result.parameters.items() if name != "notes"}
    return parameters | ({"model_used": result.model.model_dump()} if result.model else {})


@router.get("/recipe/{id:path}")
async def recipe(id: str, facade: FacadeOf, caller: Caller) -> Response:
    """A manifest that draws the same again, as a download."""
    result = await with_request(facade.client.store, await result_of(own_id(caller, id), facade))
    manifest = items.repeating_manifest(result)
    name = quote(result.id.replace("/", "-"))
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}.json"}
    if manifest.get("seed") is not None:
        headers["X-Seed"] = str(manifest["seed"])  # JavaScript's numbers would round it
    body = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    return Response(body, media_type="application/json", headers=headers)


@router.get("/b")
async def batches(request: Request, gallery: GalleryOf, caller: Caller) -> Response:
    """The list of batches."""
    listed = await gallery.batches(await gallery.overview(caller.id_prefix), caller)
    return page(request, "batches.html", batches=listed, limit=BATCHES)


@router.get("/b/{id:path}")
async def batch(
    id: str,
    request: Request,
    facade: FacadeOf,
    gallery: GalleryOf,
    caller: Caller,
    number: Annotated[int, Query(alias="page", ge=1, le=100_000)] = 1,
) -> Response:
    """One batch, with its pictures in a grid, a page of rows at a time."""
    id = own_id(caller, id)
    state = await facade.state(id)
    result = state.result
    if result is not None and result.batch is None and result.task is not None:
        return Response(status_code=307, headers={"Location": picture_path(id)})
    items, pages = await gallery.rows(id, number) if state.status != "queued" else ([], 1)
    grid = Grid(items)
    return page(
        request,
        "batch.html",
        id=id,
        state=state,
        result=result,
        counts=_counts(result),
        total=0 if result else await gallery.row_count(id),
        finished=grid.finished if result or pages == 1 else await gallery.finished_rows(id),
        grid=grid,
        number=number,
        pages=pages,
        first=(number - 1) * ROWS + 1,
    )


def _counts(result: Result | None) -> dict[str, int]:
    """How many rows of a finished batch ended in which status; without zeros."""
    if result is None or result.batch is None:
        return {}
    counts = result.batch.counts.model_dump(exclude={"total"})
    return {status: count for status, count in counts.items() if count}


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Swagger UI for the OpenAPI document, served by this server alone."""
    return page(request, "docs.html", 200, {"Content-Security-Policy": DOCS_POLICY})
