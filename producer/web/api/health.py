"""Liveness, readiness and metrics, for load balancers and Prometheus."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from producer.web.caller import Caller, FacadeOf
from schemas.errors import DreamError

router = APIRouter(tags=["Health"])
OPEN: dict[str, Any] = {"security": []}  # no key is needed
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
    try:
        async with asyncio.timeout(STORE_TIMEOUT):
            workers = await facade.workers()
    except (DreamError, TimeoutError):
        response.status_code = 503
        return Readiness(status="the store does not answer")
    ready = sum(worker.get("state") != "loading" for worker in workers)
    if not ready:
        response.status_code = 503
        return Readiness(status="loading a model" if workers else "no worker is alive")
    return Readiness(status="ready", workers=ready)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"description": "Prometheus' text format.", "content": {"text/plain": {}}}},
    summary="Metrics for Prometheus",
)
async def metrics(facade: FacadeOf, caller: Caller) -> Response:
    gauges = facade.metrics
    gauges.waiting.set(facade.waiting.total())
    try:
        async with asyncio.timeout(STORE_TIMEOUT):
            gauges.workers.set(len(await facade.workers()))
            gauges.trainers.set(len(await facade.trainers()))
    except (DreamError, TimeoutError):
        gauges.workers.set(0)
        gauges.trainers.set(0)
    return Response(generate_latest(gauges.registry), media_type=CONTENT_TYPE_LATEST)
