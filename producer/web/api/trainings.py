"""Trainings: queue one, follow it, see what it has drawn and its report, cancel it."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from pydantic import BaseModel, Field

from producer.request_state import State
from producer.trainings import report
from producer.trainings.dropping import drop
from producer.trainings.words import product_of
from producer.web.accept import HTML, type_for
from producer.web.api_keys import Key
from producer.web.caller import Caller, FacadeOf, document, new_id, own_id
from producer.web.facade import QueueFull
from producer.web.openapi import errors, file_response, invalid, training_body
from schemas.errors import NotFound, Rejected
from schemas.layout import UPLOADS
from schemas.result import Failure, Result
from schemas.training import TrainingProgress

router = APIRouter(tags=["Trainings"])
#: A report is one self-contained page: its pictures and style are inline, and it has no scripts.
REPORT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
KEPT = {"Cache-Control": "private, max-age=86400, immutable"}  # a training's files are written once
FULL_RETRY = 60  # seconds; a training takes minutes


class ValidationImage(BaseModel):
    """A picture that the model drew along the way."""

    step: int = Field(description="After which step of the training; 0 is before.")
    index: int = Field(description="Which of the validation prompts, from 0.")
    prompt: str = Field("", description="What was asked for.")
    url: str = Field(description="Its address at this server, from the root.")


class TrainingState(BaseModel):
    """The state of a training."""

    id: str = Field(description="The training's id.")
    status: str = Field(description="queued, processing, succeeded, failed, canceled or expired.")
    position: int | None = Field(None, description="While queued: about how many trainings are ahead.")
    progress: TrainingProgress | None = Field(
        None, description="While processing: the trainer's last report, with phase, steps, loss and `eta`."
    )
    model: str = Field("", description="What it has published, as name@version: the `model` of a request.")
    failure: Failure | None = Field(None, description="Why it has published nothing.")
    parameters: dict[str, Any] = Field({}, description="All options, with defaults resolved.")
    finished_at: str = Field("", description="ISO 8601, UTC.")
    report: str = Field("", description="The address of its report page, once it has published a model.")
    validation: list[ValidationImage] = Field(
        [], description="What it has drawn along the way; left out of lists."
    )


class TrainingList(BaseModel):
    """The trainings of the store."""

    queued: list[str] = Field(description="Ids, the next one first.")
    processing: list[TrainingState] = Field(description="Trainings that trainers hold.")
    latest: list[TrainingState] = Field(description="Trainings that have ended, the newest first.")
    over: int = Field(description="How many have ended, in all.")
    trainers: int = Field(description="Trainers that are alive.")


@router.get("/trainings", responses=errors(401, 503), summary="List queued, running and finished trainings")
async def list_trainings(
    facade: FacadeOf,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=50, description="The most of each kind.")] = 20,
) -> TrainingList:
    known = await facade.overview_of_trainings(caller)
    processing = [State(id, "processing", progress=p) for id, p in known.processing.items()]
    return TrainingList(
        queued=[id for id in known.queued if caller.sees(id)][:limit],
        processing=[_state(state) for state in processing[:limit]],
        latest=[_ended(result) for result in known.latest[:limit]],
        over=known.over,
        trainers=len(await facade.trainers()),
    )


@router.post(
    "/trainings",
    status_code=202,
    response_model=TrainingState,
    responses=errors(401, 409, 413, 422, 429, 503),
    openapi_extra=training_body(),
    summary="Queue a training",
)
async def queue_training(
    request: Request,
    facade: FacadeOf,
    caller: Caller,
    id: Annotated[
        str | None, Query(description="The training's id; by default the model's name with a new ending.")
    ] = None,
) -> Response:
    """A trainer takes it: `dreamdrop trainer`. The same body under the same id is the same training."""
    manifest = _own(await document(request), caller)
    name = new_id(caller, id) if id else ""
    waiting = len((await facade.overview_of_trainings(caller)).queued)
    if waiting >= facade.settings.room:
        raise QueueFull(waiting, FULL_RETRY)
    ticket = await drop(facade.trainings.view, manifest, name)
    state = _state(await facade.trainings.client.status(ticket.id))
    headers = {"Location": _path(ticket.id)}
    return Response(_json(state), 202, headers, media_type="application/json")


def _own(manifest: dict[str, Any], caller: Key) -> dict[str, Any]:
    """The manifest as it is dropped for a caller. Raises `Rejected` for what its key may not use."""
    if not caller.prefix:
        return manifest
    name = manifest.get("name")
    if isinstance(name, str) and not caller.sees(name):
        raise Rejected.of_field(
            "name",
            f"{name[:60]!r} should begin with {caller.id_prefix!r}: your key may publish such names only",
        )
    caller.check_stored("archive", manifest.get("archive"), is_key=True)
    pictures = manifest.get("pictures")
    for number, picture in enumerate(pictures if isinstance(pictures, list) else ()):
        image = picture.get("image") if isinstance(picture, dict) else None
        is_key = isinstance(image, str) and image.startswith(UPLOADS)  # as trainers tell it from base64
        caller.check_stored(f"pictures.{number}.image", image, is_key=is_key)
    before = manifest.get("resume_from")
    return manifest | ({"resume_from": caller.id(before)} if isinstance(before, str) else {})


@router.get(
    "/trainings/{id:path}/report",
    response_class=Response,
    responses={200: file_response(HTML, text="One self-contained page."), **errors(401, 404)},
    summary="Get the report of a training that has published a model",
)
async def get_report(id: str, request: Request, facade: FacadeOf, caller: Caller) -> Response:
    id = own_id(caller, id)
    try:
        key = report.report_key(id)
        stored = await facade.trainings.view.get(key, max_bytes=report.MAX_REPORT)
    except NotFound as error:
        raise HTTPException(
            404, f"{id} has no report; a training has one when it publishes a model"
        ) from error
    headers = {"Content-Security-Policy": REPORT_POLICY}
    return Response(stored.body, media_type=type_for(request, HTML), headers=headers)


@router.get(
    "/trainings/{id:path}/validation/{step}/{index}",
    response_class=Response,
    responses={200: file_response("image/png", text="The picture."), **errors(401, 404)},
    summary="Get a validation picture of a training",
)
async def get_validation_image(
    id: str,
    step: Annotated[int, Path(ge=0, le=999_999_999)],
    index: Annotated[int, Path(ge=0, le=9999)],
    request: Request,
    facade: FacadeOf,
    caller: Caller,
) -> Response:
    id = own_id(caller, id)
    try:
        body = await report.read_picture(facade.trainings.view, id, step, index)
    except NotFound as error:
        raise HTTPException(404, f"{id} has no validation picture {index} of step {step}") from error
    return Response(body, media_type=type_for(request, "image/png"), headers=KEPT)


@router.get("/trainings/{id:path}", responses=errors(401, 404), summary="Get the state of a training")
async def get_training(id: str, facade: FacadeOf, caller: Caller) -> TrainingState:
    state = await facade.trainings.client.status(own_id(caller, id))
    drawn = await report.read_validation(facade.trainings.view, state.id)
    images = [
        ValidationImage(
            step=picture.step,
            index=picture.index,
            prompt=drawn.prompt(picture),
            url=f"{_path(state.id)}/validation/{picture.step}/{picture.index}",
        )
        for picture in drawn.pictures
    ]
    return _state(state).model_copy(update={"validation": images})


@router.delete(
    "/trainings/{id:path}",
    responses={**errors(401, 404), 422: invalid("The id is not valid.")},
    summary="Cancel a training that has not finished",
)
async def cancel_training(id: str, facade: FacadeOf, caller: Caller) -> TrainingState:
    """Its trainer notices within seconds. If it has published its model first, that stands."""
    return _state(await facade.trainings.client.cancel(own_id(caller, id)))


def _state(state: State) -> TrainingState:
    if state.result is not None:
        return _ended(state.result)
    progress = state.progress if isinstance(state.progress, TrainingProgress) else None
    return TrainingState(id=state.id, status=state.status, position=state.position, progress=progress)


def _ended(result: Result) -> TrainingState:
    model = product_of(result)
    return TrainingState(
        id=result.id,
        status=result.status,
        model=model,
        failure=result.failure,
        parameters=result.parameters,
        finished_at=result.finished_at,
        report=f"{_path(result.id)}/report" if model else "",
    )


def _path(id: str) -> str:
    return f"/trainings/{quote(id)}"


def _json(state: TrainingState) -> str:
    return state.model_dump_json(exclude_defaults=True)
