"""The event that announces the end of a request, in the format of CloudEvents 1.0.

It says that there is a result and where, so nobody has to poll. The event and its id depend only on the
result: a second announcement, after a crash or a lost answer, is the same event, and a receiver can discard
it by its id. The event does not repeat the prompt.
"""

from __future__ import annotations

import json
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas import layout
from schemas.manifest_parts import PICTURES
from schemas.result import BatchResult, Failure, FailureCode, ImageResult, Result, Status, Timings

TYPE_PREFIX = "dreamdrop.request."
CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
MAX_BYTES = 128 << 10  # of an event; a topic accepts 256 KiB, its own envelope included

#: Failures whose message may repeat a part of the request.
_TELLING_FIELDS = ("prompt", "negative_prompt", *(place.partition(".")[0] for place in PICTURES))
_TELLING_CODES = ("render_error",)
_MESSAGE_CHARS = 500


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AnnouncedFailure(_Part):
    """Why there is no picture; the result has the details."""

    code: FailureCode = Field(description="The kind of failure, for programs.")
    message: str | None = Field(None, description="null where it could repeat a prompt.")
    field: str | None = Field(None, description="The field at fault, as a dotted path.")
    line: int | None = Field(None, description="From 1, in the request file.")
    column: int | None = Field(None, description="From 1.")
    index: int | None = Field(None, description="The image that failed, where only one did.")


class CompletionData(_Part):
    """The facts of the announced result."""

    id: str = Field(description="The request's id.")
    status: Status = Field(description="How it ended.")
    task: str | None = Field(
        None, description='"batch" for a .jsonl file; its rows are requests of their own.'
    )
    result: str = Field(description="Key of the result manifest.")
    images: tuple[ImageResult, ...] = ()
    failure: AnnouncedFailure | None = None
    metadata: dict[str, Any] = Field(default_factory=dict, description="The request's, unchanged.")
    timings: Timings | None = None
    batch: BatchResult | None = None
    worker: str = Field("", description="The session that ended it; empty where a client did.")
    attempts: int = Field(1, description="Attempts that counted, the last one included.")
    fingerprint: str = Field(description="SHA-256 of the request's bytes.")
    omitted: tuple[Literal["images", "metadata", "failure"], ...] = Field(
        (), description="What was left out because the event was too large; the result has it."
    )


class Completion(_Part):
    """A CloudEvents 1.0 event: a request is over."""

    specversion: Literal["1.0"] = Field("1.0", description="Of CloudEvents.")
    id: str = Field(description="The same each time this result is announced: discard repeats by it.")
    source: str = Field(min_length=1, description="The deployment that announces it; a URI reference.")
    type: Literal[
        "dreamdrop.request.succeeded",
        "dreamdrop.request.partial",
        "dreamdrop.request.failed",
        "dreamdrop.request.canceled",
        "dreamdrop.request.expired",
    ] = Field(description="How the request ended.")
    subject: str = Field(description="The request's id.")
    time: str | None = Field(
        None,
        description="RFC 3339: when it ended, by the worker's clock.",
        json_schema_extra={"format": "date-time"},
    )
    datacontenttype: Literal["application/json"] = Field("application/json", description="Of `data`.")
    data: CompletionData

    def to_json(self) -> bytes:
        """The event in structured mode; in ASCII, because a queue refuses some Unicode characters."""
        document = self.model_dump(mode="json")
        if self.time is None:
            del document["time"]  # CloudEvents has no null attributes
        return json.dumps(document, separators=(",", ":")).encode("ascii")


def completion(result: Result, *, source: str) -> Completion:
    """The event that announces a result.

    Args:
        source: names the deployment, such as the bucket's URL; a URI reference.
    """
    data = CompletionData(
        id=result.id,
        status=result.status,
        task=result.task,
        result=layout.result_key(result.id),
        images=result.images,
        failure=None if result.failure is None else _failure(result.failure),
        metadata=result.metadata,
        timings=result.timings,
        batch=result.batch,
        worker=result.worker,
        attempts=result.attempts,
        fingerprint=result.fingerprint,
    )
    event = Completion(
        id=event_id(result),
        source=source,
        type=f"{TYPE_PREFIX}{result.status}",
        subject=result.id,
        time=_time(result.finished_at),
        data=data,
    )
    return _fitting(event)


def event_id(result: Result) -> str:
    """32 hex digits that depend on the facts by which two results of a request differ.

    Not on the result's bytes: two releases of this program may write the same result differently.
    """
    facts = [
        result.id,
        result.fingerprint,
        result.status,
        result.finished_at,
        result.worker,
        result.attempts,
    ]
    return sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _failure(failure: Failure) -> AnnouncedFailure:
    top = (failure.field or "").partition(".")[0]
    telling = top in _TELLING_FIELDS or failure.code in _TELLING_CODES
    facts = failure.model_dump(exclude={"message"})
    return AnnouncedFailure(**facts, message=None if telling else failure.message[:_MESSAGE_CHARS])


def _time(text: str) -> str | None:
    """The text, if it is a timestamp with an offset."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return text if "T" in text and moment.tzinfo is not None else None


def _fitting(event: Completion) -> Completion:
    """The event; if it is too large for a queue, without its longest parts."""
    empty: dict[str, Any] = {"images": (), "metadata": {}, "failure": None}
    for part, nothing in empty.items():
        if len(event.to_json()) <= MAX_BYTES:
            break
        omitted = (*event.data.omitted, part)
        data = event.data.model_copy(update={part: nothing, "omitted": omitted})
        event = event.model_copy(update={"data": data})
    return event
