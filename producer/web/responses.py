"""Response bodies: results and states as JSON, and every error with its HTTP status."""

from __future__ import annotations

import base64
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from infra.gather import gather_bounded
from producer import collect
from producer.errors import Conflict, Damaged, StillWorking, UnknownRequest, UnknownTraining
from producer.web.facade import CallerGone, NoWorker, QueueFull, WaitExpired
from schemas.errors import DreamError, Rejected, Unavailable
from schemas.result import BatchResult, Failure, ImageResult, ModelUsed, Note, Progress, Result, Timings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.stores.store import Store
    from producer.request_state import State

log = logging.getLogger(__name__)
AT_ONCE = 8  # images of one response that are read at the same time
#: The HTTP status of a failure by its code. Codes that are not here are the caller's to correct: 422.
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


class NoPictures(DreamError):
    """A request ended without a picture."""

    def __init__(self, result: Result) -> None:
        self.failure = result.failure or Failure(code="render_error", message=f"the request {result.status}")
        super().__init__(self.failure.message)
        self.id = result.id


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class Drawing(_View):
    """The response of a synchronous call."""

    images: list[str] = Field(description="The pictures in base64, in the order of `seeds`.")
    seeds: list[int] = Field(description="Each picture's seed: the same request with it draws that picture.")
    id: str = Field(description="The request's id: `GET /jobs/{id}` returns the result again.")
    status: str = Field(description="succeeded, or partial when some images failed.")
    timings: Timings | None = Field(None, description="How long each part took.")
    warnings: tuple[Note, ...] = Field((), description="What was changed, cut or ignored.")
    failure: Failure | None = Field(None, description="Why some images failed, when status is partial.")
    model: ModelUsed | None = Field(None, description="The weights that drew.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="The recipe: all parameters, with defaults and seeds resolved."
    )


class JobImage(_View):
    """A stored image, and its URL."""

    index: int = Field(description="Which of the request's images, from 0.")
    url: str = Field(description="Its address at this server, from the root.")
    seed: int
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    content_type: str = Field(description="image/png, image/jpeg or image/webp.")
    bytes: int = Field(description="The size of the file.")


class Job(_View):
    """The state of a request."""

    id: str = Field(description="The request's id.")
    status: str = Field(description="queued, processing, succeeded, partial, failed, canceled or expired.")
    position: int | None = Field(
        None, description="While queued: about how many requests are ahead of this one."
    )
    progress: Progress | None = Field(None, description="While processing: the worker's last report.")
    images: list[JobImage] = Field([], description="The pictures; empty until the request has finished.")
    failure: Failure | None = Field(None, description="Why there are no pictures, or not all.")
    warnings: tuple[Note, ...] = Field((), description="What was changed, cut or ignored.")
    task: str | None = Field(None, description="text2img, img2img or inpainting.")
    parameters: dict[str, Any] = Field(
        {}, description="The recipe: all parameters, with defaults and seeds resolved."
    )
    metadata: dict[str, Any] = Field({}, description="The request's own `metadata`, unchanged.")
    timings: Timings | None = Field(None, description="How long each part took.")
    model: ModelUsed | None = Field(None, description="The weights that drew.")
    finished_at: str = Field("", description="ISO 8601, UTC.")
    batch: BatchResult | None = Field(None, description="Of a batch: its counts and its summary files.")
    data: list[str] | None = Field(None, description="The pictures in base64, with `images=true`.")

    @property
    def over(self) -> bool:
        return self.status not in ("queued", "processing")


#: Fields that a response takes from a result unchanged.
_DRAWING_FIELDS = Drawing.model_fields.keys() & Result.model_fields.keys() - {"images"}
_JOB_FIELDS = Job.model_fields.keys() & Result.model_fields.keys() - {"images"}
_IMAGE_FIELDS = JobImage.model_fields.keys() & ImageResult.model_fields.keys()


def job_of_state(state: State) -> Job:
    """A request's state as a response."""
    if state.result is not None:
        return job_of_result(state.result)
    return Job(id=state.id, status=state.status, position=state.position, progress=state.progress)


def job_of_result(result: Result) -> Job:
    """A finished request as a response, however it ended."""
    images = [
        JobImage(url=image_path(result.id, image.index), **image.model_dump(include=_IMAGE_FIELDS))
        for image in result.images
    ]
    return Job(images=images, **result.model_dump(include=_JOB_FIELDS))


def job_path(id: str) -> str:
    return f"/jobs/{quote(id)}"


def image_path(id: str, index: int) -> str:
    return f"{job_path(id)}/images/{index}"


async def pictures(store: Store, result: Result) -> list[bytes]:
    """A result's images, checked. Raises `NoPictures` when there are none, `Damaged`."""
    if not result.images:
        raise NoPictures(result)
    return await gather_bounded(result.images, AT_ONCE, lambda image: collect.read_image(store, image))


def drawing_json(result: Result, images: Sequence[bytes]) -> bytes:
    """A `Drawing` as JSON."""
    seeds = [image.seed for image in result.images]
    return json_with_images(
        Drawing(images=[], seeds=seeds, **result.model_dump(include=_DRAWING_FIELDS)), images
    )


def json_with_images(body: BaseModel, images: Sequence[bytes]) -> bytes:
    """A body as JSON with `images` in base64; they are most of it, and base64 needs no escaping."""
    encoded = b",".join(b'"%b"' % base64.b64encode(image) for image in images)
    rest = body.model_dump_json(exclude={"images"}).encode()
    return b'{"images":[%b],%b' % (encoded, rest[1:])


def message_for(error: DreamError) -> str:
    """The message that a caller gets: without the store's address and other callers' ids."""
    if isinstance(error, UnknownTraining):
        return f"no training has the id {error.id!r}"
    if isinstance(error, UnknownRequest):
        return f"no request has the id {error.id!r}; a request that was sent to a queue is known once a worker reads it"
    if _is_outage(error):
        return "the store does not answer at the moment; try again in a few seconds"
    return str(error)


def _is_outage(error: DreamError) -> bool:
    return isinstance(error, Unavailable) and not isinstance(error, NoWorker)


def error_parts(error: DreamError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers of an error response; 413 and 422 have the shape of `HTTPValidationError`."""
    if _is_outage(error):
        log.warning("answered 503: %s", error)  # the response does not say where the store is
    status, headers = _status(error), dict[str, str]()
    body: dict[str, Any] = {"detail": message_for(error)}
    if isinstance(error, (Rejected, NoPictures)):
        failure = error.failure if isinstance(error, NoPictures) else error
        if status in (413, 422):
            body = {"detail": [_validation_error(failure)]}
        else:
            body["code"] = failure.code
    if isinstance(error, (NoPictures, WaitExpired, UnknownRequest, Conflict)):
        body["id"] = error.id
    if isinstance(error, WaitExpired):
        headers["Location"] = job_path(error.id)
    if isinstance(error, QueueFull):
        headers["Retry-After"] = str(error.retry_after)
    elif status == 503:
        headers["Retry-After"] = "5"
    return status, body, headers


def _validation_error(failure: Rejected | Failure) -> dict[str, Any]:
    location = ["body", *(failure.field.split(".") if failure.field else ())]
    entry: dict[str, Any] = {"type": failure.code, "loc": location, "msg": failure.message}
    if failure.line is not None:
        entry["ctx"] = {"line": failure.line} | ({"column": failure.column} if failure.column else {})
    return entry


def _status(error: DreamError) -> int:
    if isinstance(error, NoPictures):
        return STATUS.get(error.failure.code, 422)
    if isinstance(error, Rejected):
        return STATUS.get(error.code, 422)
    for kind, status in (
        (Conflict, 409),
        (UnknownRequest, 404),
        (QueueFull, 429),
        (WaitExpired, 504),
        (StillWorking, 409),
        (CallerGone, 499),
        (Damaged, 410),
        (Unavailable, 503),
    ):
        if isinstance(error, kind):
            return status
    return 500
