"""What people look at: pages that work as plain HTML, which small modules of JavaScript keep up to date.

The templates are the only place where a page is made: a live page asks for itself again and takes over
what changed, so there is nothing to draw twice. Everything of a request is escaped by the templates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.types import Scope

from producer.web import responses
from producer.web.api.jobs import result_of
from producer.web.caller import Caller, FacadeOf, own_id
from producer.web.guard import POLICY
from producer.web.pages import gallery, tiles
from producer.web.pages.gallery import Gallery
from producer.web.pages.tiles import Tile
from schemas import samplers
from schemas.errors import DreamError
from schemas.result import Result

HERE = Path(__file__).parent
PER_PAGE = 48  # requests in the gallery
STATUS = {
    "queued": "waiting",
    "processing": "being drawn",
    "succeeded": "finished",
    "partial": "finished in part",
    "failed": "failed",
    "canceled": "cancelled",
    "expired": "expired",
}
NAMES = {"cfg_scale": "Guidance (cfg)", "negative_prompt": "Without", "model_revision": "Revision"}
HIDDEN = {"notes", "seeds", "prompt"}  # of a recipe's table; told elsewhere on the page
#: Swagger UI writes styles into its elements and holds small pictures in its style sheet.
DOCS_POLICY = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")

templates = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
templates.globals.update(
    version=version("dreamdrop"),
    words=STATUS,
    said=tiles.said,
    duration=tiles.duration,
    picture_path=tiles.picture_path,
    job_path=responses.job_path,
)
templates.filters["path"] = quote
templates.filters["label"] = lambda name: NAMES.get(name, name.replace("_", " ").capitalize())


class Page(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def shown(request: Request) -> Response:
            try:
                return await handle(request)
            except DreamError as fault:
                status, _, headers = responses.error(fault)
                text = responses.words(fault)
                return _page(request, "error.html", status, headers, status=status, text=text)
            except HTTPException as fault:
                if fault.status_code == 401:
                    raise  # the browser asks for the key
                status = fault.status_code
                return _page(request, "error.html", status, status=status, text=str(fault.detail))

        return shown


router = APIRouter(route_class=Page, include_in_schema=False)


class Files(StaticFiles):
    """Scripts and styles: kept by browsers, which ask whether they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "no-cache"
        return response


def album_of(request: Request) -> Gallery:
    found: Gallery = request.app.state.gallery
    return found


Shelf = Annotated[Gallery, Depends(album_of)]


def _page(
    request: Request, name: str, code: int = 200, headers: dict[str, str] | None = None, /, **facts: Any
) -> Response:
    """A page; one that has not changed since the browser last asked is not sent again."""
    text = templates.get_template(name).render(facts)
    told = {"ETag": f'"{sha256(text.encode()).hexdigest()[:32]}"', "Cache-Control": "private, no-cache"}
    told |= headers or {}
    if code == 200 and request.headers.get("if-none-match") == told["ETag"]:
        return Response(status_code=304, headers=told)
    return HTMLResponse(text, code, told)


async def _latest(shelf: Gallery, caller: Caller, id: str) -> list[Result]:
    """The newest pictures, `id` among them even if it ended a moment ago."""
    for look in (shelf.overview, shelf.look):
        latest = [r for r in (await look(caller.begin)).latest if tiles.tiles(r)]
        if any(result.id == id for result in latest):
            break
    return latest


async def _live(shelf: Gallery, caller: Caller, before: str | None, now: bool = False) -> dict[str, Any]:
    """The queue and the gallery; `now`: not as they were a moment ago."""
    found = await (shelf.look if now else shelf.overview)(caller.begin)
    latest = [r for r in found.latest if tiles.tiles(r)]
    if before:
        latest = await _latest(shelf, caller, before)
    start = next((n + 1 for n, result in enumerate(latest) if result.id == before), 0)
    page = latest[start : start + PER_PAGE]
    more = len(latest) > start + PER_PAGE
    queue = await shelf.queue(found, caller)
    return {
        "workers": found.workers,
        "queue": queue,
        "hidden": sum(map(caller.sees, (*found.queued, *found.processing))) - len(queue),
        "tiles": [tile for result in page for tile in tiles.tiles(result)],
        "older": page[-1].id if more and page else "",
        "before": before or "",
    }


@router.get("/", summary="Draw, watch, and look at what was drawn")
async def home(
    request: Request,
    facade: FacadeOf,
    shelf: Shelf,
    caller: Caller,
    before: Annotated[str | None, Query(max_length=500)] = None,
) -> Response:
    workers = await facade.workers()
    models = {name for said in workers for name in _texts(said.get("models"))}
    defaults = sorted({str(said["default_model"]) for said in workers if said.get("default_model")})
    return _page(
        request,
        "home.html",
        models=sorted(models),
        default_model=", ".join(defaults),
        schedulers=samplers.names(),
        limits=facade.settings.limits,
        **await _live(shelf, caller, before),
    )


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


@router.get("/live")
async def live(
    request: Request, facade: FacadeOf, shelf: Shelf, caller: Caller, now: bool = False
) -> Response:
    """The parts of the first page that change."""
    return _page(request, "live.html", **await _live(shelf, caller, None, now))


@router.get("/pictures/{id:path}")
async def picture(id: str, request: Request, facade: FacadeOf, shelf: Shelf, caller: Caller) -> Response:
    """One request: its pictures and its recipe, or how far it is."""
    id = own_id(caller, id)
    state = await facade.state(id)
    if state.result is not None and state.result.batch is not None:
        return Response(status_code=307, headers={"Location": f"/b/{quote(id)}"})
    result = state.result
    newer, older = tiles.neighbours(await _latest(shelf, caller, id), id)
    prompt = (await shelf.words(id))[0] if result is None else tiles.tiles(result)[0].prompt
    plan = result.parameters if result else {}
    return _page(
        request,
        "picture.html",
        id=id,
        state=state,
        result=result,
        tiles=tiles.tiles(result) if result else [],
        prompt=prompt,
        table=_table(plan),
        recipe=json.dumps(_recipe(result), indent=2, ensure_ascii=False) if result else "",
        again=result is not None and tiles.can_be_drawn_again(result),
        newer=newer,
        older=older,
        batch=id.rpartition("/")[0] if "/" in id and await _is_over(facade, id.rpartition("/")[0]) else "",
    )


async def _is_over(facade: FacadeOf, id: str) -> bool:
    from producer.request_state import read_result

    found = await read_result(facade.client.store, id)
    return found is not None and found.batch is not None


def _table(plan: dict[str, Any]) -> dict[str, Any]:
    """What of a recipe is worth a line."""
    table = {k: v for k, v in plan.items() if k not in HIDDEN and v not in (None, "", [], ())}
    if isinstance(output := table.get("output"), dict) and output.get("format") == "png":
        table["output"] = "png"  # its quality says nothing
    return table


def _recipe(result: Result) -> dict[str, Any]:
    facts = {k: v for k, v in result.parameters.items() if k != "notes"}
    return facts | ({"model_used": result.model.model_dump()} if result.model else {})


@router.get("/recipe/{id:path}")
async def recipe(id: str, facade: FacadeOf, caller: Caller) -> Response:
    """A manifest that can be dropped, and draws the same again."""
    result = await result_of(own_id(caller, id), facade)
    document = tiles.manifest(result)
    name = quote(result.id.replace("/", "-"))
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{name}.json"}
    if document.get("seed") is not None:
        headers["X-Seed"] = str(document["seed"])  # JavaScript's numbers would round it
    body = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    return Response(body, media_type="application/json", headers=headers)


@router.get("/b")
async def batches(request: Request, shelf: Shelf, caller: Caller) -> Response:
    lines = await shelf.batches(await shelf.overview(caller.begin), caller)
    return _page(request, "batches.html", lines=lines, shown=gallery.BATCHES)


@router.get("/b/{id:path}")
async def batch(id: str, request: Request, facade: FacadeOf, shelf: Shelf, caller: Caller) -> Response:
    """A batch as a grid."""
    id = own_id(caller, id)
    state = await facade.state(id)
    result = state.result
    if result is not None and result.batch is None and result.task is not None:
        return Response(status_code=307, headers={"Location": tiles.picture_path(id)})
    shown: list[Tile] = await shelf.rows(id) if state.status != "queued" else []
    counts = result.batch.counts if result and result.batch else None
    return _page(
        request,
        "batch.html",
        id=id,
        state=state,
        result=result,
        counts={k: v for k, v in counts.model_dump().items() if v and k != "total"} if counts else {},
        done=len({tile.id for tile in shown}),
        total=0 if result else await shelf.size(id),
        tiles=[tile for tile in shown if tile.url],
        failed=[tile for tile in shown if tile.why and tile.index == 0],
        differing=tiles.differing(shown),
        compared=[name for name in tiles.COMPARED if any(name in tile.facts for tile in shown)],
        most=gallery.ROWS,
    )


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Swagger UI over the OpenAPI document, from this server alone."""
    return _page(request, "docs.html", 200, {"Content-Security-Policy": DOCS_POLICY})
