"""Is it alive, is it ready, and what has it done: for load balancers and Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from producer.web.caller import Caller, FacadeOf
from producer.web.openapi import problem
from schemas.errors import DreamError

router = APIRouter(tags=["Health"])
PATIENCE = 5.0  # seconds for the store's answer


@router.get("/livez", summary="The process answers")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get("/readyz", responses={503: problem("The store does not answer, or nobody is there to draw.")})
async def readyz(facade: FacadeOf, response: Response) -> dict[str, str | int]:
    """The store answers, and a worker is alive."""
    try:
        async with asyncio.timeout(PATIENCE):
            workers = len(await facade.workers())
    except (DreamError, TimeoutError):
        response.status_code = 503
        return {"status": "the store does not answer"}
    if not workers:
        response.status_code = 503
        return {"status": "no worker is alive", "workers": 0}
    return {"status": "ready", "workers": workers}


@router.get("/metrics", response_class=Response, summary="For Prometheus")
async def metrics(facade: FacadeOf, caller: Caller) -> Response:
    found = facade.metrics
    found.waiting.set(facade.waiting.total())
    try:
        async with asyncio.timeout(PATIENCE):
            found.workers.set(len(await facade.workers()))
    except (DreamError, TimeoutError):
        found.workers.set(0)
    return Response(generate_latest(found.registry), media_type=CONTENT_TYPE_LATEST)
