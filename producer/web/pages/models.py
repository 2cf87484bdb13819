"""The page of published models, and the pictures that their cards name."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException, Request, Response

from infra.models import published
from producer.web.caller import Caller, FacadeOf
from producer.web.pages.published import PICTURES
from producer.web.pages.routes import GalleryOf, Page, page
from schemas.errors import NotFound
from schemas.models import version_prefix

router = APIRouter(route_class=Page, include_in_schema=False)

_MAX_PICTURE = 32 << 20  # bytes


@router.get("/m")
async def models(request: Request, gallery: GalleryOf, caller: Caller) -> Response:
    """What is published, with a picture of each."""
    return page(request, "models.html", items=await gallery.models())


@router.get("/m/{name}/{version}/{path:path}")
async def picture(name: str, version: int, path: str, facade: FacadeOf, caller: Caller) -> Response:
    """A picture that the card of a version names, and nothing else of it."""
    card = await published.read_card(facade.client.store, name, version) if name else None
    content_type = PICTURES.get(path[path.rfind(".") :])
    if card is None or path not in card.validation or content_type is None:
        raise HTTPException(404, f"{name[:100]}@{version} has no such picture")
    try:
        key = version_prefix(card.name, card.version) + path
        stored = await facade.client.store.get(key, max_bytes=_MAX_PICTURE)
    except NotFound as error:
        raise HTTPException(404, f"{card.reference} has lost this picture") from error
    headers = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(stored.body, media_type=content_type, headers=headers)
