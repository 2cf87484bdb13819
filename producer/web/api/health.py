"""Liveness, readiness and metrics, for load balancers and Prometheus."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from producer.web.caller import Caller, FacadeOf
from producer.web.openapi import problem
from schemas.errors import DreamError

router = APIRouter(tags=["Health"])
STORE_TIMEOUT = 5.0  # seconds


@router.get("/livez", summary="Whether the process answers")
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get(
    "/readyz",
    summary="Whether requests can be drawn",
    responses={503: problem("The store does not answer, or no worker has its model loaded.")},
)
async def readyz(facade: FacadeOf, response: Response) -> dict[str, str | int]:
    """200 when the store answers and a worker is alive that has loaded its model."""
    try:
        async with asyncio.timeout(STORE_TIMEOUT):
            workers = await facade.workers()
    except (DreamError, TimeoutError):
        response.status_code = 503
        return {"status": "the store does not answer"}
    ready = sum(worker.get("state") != "loading" for worker in workers)
    if not ready:
        response.status_code = 503
        return {"status": "loading a model" if workers else "no worker is alive", "workers": 0}
    return {"status": "ready", "workers": ready}


@router.get("/metrics", response_class=Response, summary="Metrics for Prometheus")
async def metrics(facade: FacadeOf, caller: Caller) -> Response:
    gauges = facade.metrics
    gauges.waiting.set(facade.waiting.total())
    try:
        async with asyncio.timeout(STORE_TIMEOUT):
            gauges.workers.set(len(await facade.workers()))
    except (DreamError, TimeoutError):
        gauges.workers.set(0)
    return Response(generate_latest(gauges.registry), media_type=CONTENT_TYPE_LATEST)
