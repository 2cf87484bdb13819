"""Liveness, readiness and metrics, for load balancers and Prometheus."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from producer.web.caller import Caller, FacadeOf
from schemas.errors import DreamError

if TYPE_CHECKING:
    from producer.web.facade import Facade

router = APIRouter(tags=["Health"])
OPEN: dict[str, Any] = {"security": []}  # no key is needed
READY = "ready"
STORE_TIMEOUT = 5.0  # seconds


class Readiness(BaseModel):
    """Whether requests can be drawn."""

    status: str = Field(description="ready, or what is missing.")
    workers: int = Field(0, description="Workers that are alive and have their model loaded.")


@router.get("/livez", summary="Whether the process answers", openapi_extra=OPEN)
async def livez() -> dict[str, str]:
    return {"status": "alive"}


@router.get(
    "/readyz",
    summary="Whether requests can be drawn",
    openapi_extra=OPEN,
    responses={
        503: {
            "description": "The store does not answer, or no worker has its model loaded.",
            "model": Readiness,
        }
    },
)
async def readyz(facade: FacadeOf, response: Response) -> Readiness:
    """200 when the store answers and a worker is alive that has loaded its model."""
    ready = await readiness(facade)
    response.status_code = 200 if ready.status == READY else 503
    return ready


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}},
    summary="Metrics for Prometheus",
)
async def metrics(facade: FacadeOf, caller: Caller) -> Response:
    await refresh(facade)
    return Response(generate_latest(facade.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def refresh(facade: Facade) -> None:
    """Read what is not counted as it happens."""
    facade.metrics.waiting.set(facade.waiting.total())
    try:
        async with asyncio.timeout(STORE_TIMEOUT):
            facade.metrics.workers.set(len(await facade.workers()))
            facade.metrics.trainers.set(len(await facade.trainers()))
    except (DreamError, TimeoutError):
        facade.metrics.workers.set(0)
        facade.metrics.trainers.set(0)


async def readiness(facade: Facade) -> Readiness:
    """Whether the store answers and a worker is alive that has loaded its model."""
    try:
        async with asyncio.timeout(STORE_TIMEOUT):
            workers = await facade.workers()
    except (DreamError, TimeoutError):
        return Readiness(status="the store does not answer")
    ready = sum(worker.get("state") != "loading" for worker in workers)
    if not ready:
        return Readiness(status="loading a model" if workers else "no worker is alive")
    return Readiness(status=READY, workers=ready)
