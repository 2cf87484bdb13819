"""What callers get: results and states as JSON, and every error in the words that a failed result has."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from producer import collect
from producer.errors import Conflict, Damaged, StillWorking, UnknownRequest
from producer.web.facade import CallerGone, LaneFull, NoWorker, TooLate
from schemas.errors import DreamError, Rejected, Unavailable
from schemas.result import BatchResult, Failure, ModelUsed, Note, Progress, Result, Timings

if TYPE_CHECKING:
    from infra.stores.store import Store
    from producer.request_state import State

log = logging.getLogger(__name__)
AT_ONCE = 8  # images of one answer that are read at the same time
#: Which failures are the caller's to mend (422), a matter of time (503) or past (409, 410); all others: 500.
STATUS = {
    "too_large": 413,
    "model_unavailable": 503,
    "canceled": 409,
    "expired": 410,
    "out_of_memory": 500,
    "non_finite": 500,
    "render_error": 500,
    "worker_crashed": 500,
    "some_images_failed": 500,
    "some_rows_failed": 500,
}


class Undrawn(DreamError):
    """A request ended without a picture."""

    def __init__(self, result: Result) -> None:
        self.failure = result.failure or Failure(code="render_error", message=f"the request {result.status}")
        super().__init__(self.failure.message)
        self.id = result.id


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Drawing(_View):
    """What a synchronous call answers."""

    images: list[str] = Field(description="Base64, in the order of their seeds.")
    seeds: list[int]
    id: str = Field(description="Names the result; `GET /jobs/{id}` finds it again.")
    status: str = Field(description="succeeded, or partial when some images failed.")
    timings: Timings | None = None
    warnings: tuple[Note, ...] = Field((), description="Everything that was changed, cut or ignored.")
    failure: Failure | None = Field(None, description="Of the images that failed, when some did.")
    model: ModelUsed | None = None
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="The recipe: every default resolved, every seed drawn."
    )


class JobImage(_View):
    """A stored image, and where to get it."""

    index: int
    url: str
    seed: int
    width: int
    height: int
    content_type: str
    bytes: int


class Job(_View):
    """How far a request is."""

    id: str
    status: str = Field(description="queued, processing, succeeded, partial, failed, canceled, expired")
    position: int | None = Field(None, description="While queued: about so many are ahead.")
    progress: Progress | None = Field(None, description="While processing: as its worker last said.")
    images: list[JobImage] = []
    failure: Failure | None = None
    warnings: tuple[Note, ...] = ()
    task: str | None = None
    parameters: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    timings: Timings | None = None
    model: ModelUsed | None = None
    finished_at: str = ""
    batch: BatchResult | None = None
    data: list[str] | None = Field(None, description="The images in base64, where they were asked for.")

    @property
    def over(self) -> bool:
        return self.status not in ("queued", "processing")


def job(state: State) -> Job:
    """A state, as callers see it."""
    if state.result is not None:
        return finished(state.result)
    return Job(id=state.id, status=state.status, position=state.position, progress=state.progress)


def finished(result: Result) -> Job:
    """A request that is over, however it ended."""
    return Job(
        id=result.id,
        status=result.status,
        images=[
            JobImage(
                index=image.index,
                url=f"{job_path(result.id)}/images/{image.index}",
                seed=image.seed,
                width=image.width,
                height=image.height,
                content_type=image.content_type,
                bytes=image.bytes,
            )
            for image in result.images
        ],
        failure=result.failure,
        warnings=result.warnings,
        task=result.task,
        parameters=result.parameters,
        metadata=result.metadata,
        timings=result.timings,
        model=result.model,
        finished_at=result.finished_at,
        batch=result.batch,
    )


def job_path(id: str) -> str:
    return f"/jobs/{quote(id)}"


async def pictures(store: Store, result: Result) -> list[bytes]:
    """A result's images, checked. Raises `Undrawn` when there are none, `Damaged`."""
    if not result.images:
        raise Undrawn(result)
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(index: int) -> bytes:
        async with gate:
            return await collect.read_image(store, result.images[index])

    return list(await asyncio.gather(*map(one, range(len(result.images)))))


def drawing(result: Result, images: list[bytes]) -> bytes:
    """A `Drawing` as JSON. The pictures are most of it, so they are joined in as they are: base64 needs no care."""
    about = Drawing(
        images=[],
        seeds=[image.seed for image in result.images],
        id=result.id,
        status=result.status,
        timings=result.timings,
        warnings=result.warnings,
        failure=result.failure,
        model=result.model,
        parameters=result.parameters,
    ).model_dump_json(exclude={"images"})
    coded = b",".join(b'"%b"' % base64.b64encode(image) for image in images)
    return b'{"images":[%b],%b' % (coded, about.encode()[1:])


def words(fault: DreamError) -> str:
    """What a caller is told: not where the store lies, and no other caller's names."""
    if isinstance(fault, UnknownRequest):
        return f"nothing is known of {fault.id!r}; what was sent to a queue is known when a worker has it"
    if _is_away(fault):
        return "the store does not answer just now; try again in a few seconds"
    return str(fault)


def _is_away(fault: DreamError) -> bool:
    return isinstance(fault, Unavailable) and not isinstance(fault, NoWorker)


def error(fault: DreamError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for what went wrong; 422 has the shape of FastAPI's `HTTPValidationError`."""
    if _is_away(fault):
        log.warning("answered 503: %s", fault)  # the caller is not told where
    status, headers = _status(fault), dict[str, str]()
    body: dict[str, Any] = {"detail": words(fault)}
    if isinstance(fault, (Rejected, Undrawn)):
        said = fault.failure if isinstance(fault, Undrawn) else fault
        if status in (413, 422):
            where = ["body", *(said.field.split(".") if said.field else ())]
            entry: dict[str, Any] = {"type": said.code, "loc": where, "msg": said.message}
            if said.line is not None:
                entry["ctx"] = {"line": said.line} | ({"column": said.column} if said.column else {})
            body = {"detail": [entry]}
        else:
            body["code"] = said.code
    if isinstance(fault, (Undrawn, TooLate, UnknownRequest, Conflict)):
        body["id"] = fault.id
    if isinstance(fault, TooLate):
        headers["Location"] = job_path(fault.id)
    if isinstance(fault, LaneFull):
        headers["Retry-After"] = str(fault.retry_after)
    elif status == 503:
        headers["Retry-After"] = "5"
    return status, body, headers


def _status(fault: DreamError) -> int:
    if isinstance(fault, Undrawn):
        return STATUS.get(fault.failure.code, 422)
    if isinstance(fault, Rejected):
        return STATUS.get(fault.code, 422)
    for kind, status in (
        (Conflict, 409),
        (UnknownRequest, 404),
        (LaneFull, 429),
        (TooLate, 504),
        (StillWorking, 409),
        (CallerGone, 499),
        (Damaged, 410),
        (NoWorker, 503),
        (Unavailable, 503),
    ):
        if isinstance(fault, kind):
            return status
    return 500
