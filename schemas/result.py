"""The result manifest, the summary of a batch, and the progress of a request.

A result is written once, last, and is complete: the images or the reason why there are none, the warnings,
the worker, the model, and the request itself.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import Rejected
from schemas.text.strictjson import load_object, path_of_infinity

Status = Literal["succeeded", "partial", "failed", "canceled", "expired"]
FailureCode = Literal[
    "invalid_json",  # the document is not one JSON object
    "invalid_manifest",  # a field is wrong
    "invalid_image",  # a picture cannot be read
    "too_large",  # over a limit in bytes
    "unknown_model",
    "unknown_scheduler",
    "unknown_lora",
    "unsupported",  # the model cannot do this task
    "model_unavailable",  # known, but its weights are not available here
    "out_of_memory",  # does not fit this device, even alone
    "non_finite",  # the model produced NaN
    "render_error",  # the pipeline raised
    "worker_crashed",  # the allowed attempts are used up
    "some_images_failed",
    "some_rows_failed",
    "canceled",
    "expired",
]


class _Part(BaseModel):
    """Unknown fields are ignored, because a newer worker may have written them."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class ImageResult(_Part):
    """One stored image."""

    index: int = Field(ge=0, description="Which of the request's images; its seed is the first seed + index.")
    key: str = Field(description="Its key in the store.")
    seed: int = Field(description="With it, alone, the same image is drawn again.")
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    bytes: int = Field(description="Of the file.")
    sha256: str = Field(description="Of the file, in hex.")
    content_type: str = Field(description="Such as image/png.")


class Failure(_Part):
    """Why there is no picture, for the author of the request."""

    code: FailureCode = Field(description="The kind of failure, for programs.")
    message: str = Field(description="What is wrong and what to do, for people.")
    field: str | None = Field(None, description="The field at fault, as a dotted path.")
    line: int | None = Field(None, description="From 1, in the request file.")
    column: int | None = Field(None, description="From 1.")
    index: int | None = Field(None, description="The image that failed, where only one did.")

    @classmethod
    def of(cls, error: Rejected) -> Self:
        """The failure that a refusal leads to."""
        where = {"field": error.field, "line": error.line, "column": error.column}
        return cls.model_validate({"code": error.code, "message": error.message, **where})


class Note(_Part):
    """A warning: something was changed, cut or ignored."""

    code: str = Field(description="The kind of warning, for programs; there may be new ones.")
    message: str = Field(description="What was changed, for people.")
    field: str | None = Field(None, description="The field that it is about, as a dotted path.")


class Timings(_Part):
    """Seconds, by the worker's clock."""

    total: float = Field(description="From the claim to the commit.")
    decode: float = Field(0.0, description="Pictures of the request to pixels.")
    render: float = Field(
        0.0, description="From the first device call to the last, waiting for other requests included."
    )
    encode: float = Field(0.0, description="Pixels to files.")
    upload: float = Field(0.0, description="Files to the store.")


class ModelUsed(_Part):
    """The exact weights that drew the images."""

    name: str = Field(description="As requests name it.")
    revision: str = Field(
        "", description="Which weights: a commit of the hub, a published version, or a hash."
    )
    source: str = Field("", description="Where they came from.")
    licence: str = Field("", description="As the model's card says it.")
    dtype: str = Field("", description="The precision in which they drew.")


class BatchCounts(_Part):
    """How the rows of a batch ended."""

    total: int = Field(description="All rows.")
    succeeded: int = Field(0, description="Rows with all of their images.")
    partial: int = Field(0, description="Rows with some of their images.")
    failed: int = Field(0, description="Rows without images, for a fault.")
    canceled: int = Field(0, description="Rows that were canceled.")
    expired: int = Field(0, description="Rows that had not begun by their `expires_at`.")


class BatchResult(_Part):
    """A batch's counts and the keys of its summary files."""

    counts: BatchCounts
    results: str = Field(description="Key of results.jsonl: one line for each row with pictures.")
    errors: str = Field(description="Key of errors.jsonl: one line for each row without pictures.")
    gallery: str = Field("", description="Key of gallery.html, the first page of its gallery.")
    gallery_pages: int = Field(
        1,
        ge=1,
        description="Pages of the gallery: gallery.html, gallery-2.html, ... beside it; left out if there is one.",
        exclude_if=lambda pages: pages == 1,
    )
    contact_sheet: str = Field(
        "", description="Key of one picture with all images, small; empty when there is none."
    )

    def gallery_keys(self) -> list[str]:
        """The keys of the gallery's pages, in order; none if there is no gallery."""
        stem = self.gallery.removesuffix(".html")
        more = [f"{stem}-{number}.html" for number in range(2, self.gallery_pages + 1)]
        return [self.gallery, *more] if self.gallery else []


class Frozen(_Part):
    """A request's bytes: as text if they are UTF-8, else in base64."""

    text: str | None = Field(None, description="The bytes, where they are UTF-8.")
    base64: str | None = Field(None, description="The bytes, where they are not.")
    cut: bool = Field(
        False,
        description="True if only the beginning of the body is here: it is too long, or was over the limit.",
    )
    key: str | None = Field(
        None,
        description="Key of the object that holds the whole body, where it is kept beside the result; else left out.",
        exclude_if=lambda key: key is None,
    )

    @property
    def length(self) -> int:
        """About how many bytes it takes as JSON."""
        return len(self.text if self.text is not None else self.base64 or "")

    @classmethod
    def of(cls, body: bytes, *, keep: int | None = None) -> Frozen:
        """Freeze a body, or its first `keep` bytes."""
        cut = keep is not None and len(body) > keep
        kept = body[:keep] if cut else body
        try:
            return cls(text=kept.decode("utf-8"), cut=cut)
        except UnicodeDecodeError:
            return cls(base64=base64.b64encode(kept).decode("ascii"), cut=cut)

    def body(self) -> bytes:
        """The bytes. Raises `ValueError` when they are damaged."""
        if self.text is not None:
            return self.text.encode("utf-8")
        try:
            return base64.b64decode(self.base64 or "", validate=True)
        except binascii.Error as error:
            raise ValueError("the frozen request is damaged") from error

    def metadata(self) -> dict[str, Any]:
        """The request's `metadata`; {} when it has none or cannot be read."""
        with contextlib.suppress(Rejected, ValueError):
            metadata = {} if self.cut else load_object(self.body()).get("metadata")
            return metadata if isinstance(metadata, dict) and path_of_infinity(metadata) is None else {}
        return {}


class Result(_Part):
    """`results/<id>/result.json`: once it exists, the request has ended."""

    v: Literal[1] = Field(1, description="The version of this format.")
    id: str = Field(description="The request's id.")
    status: Status = Field(description="How it ended; partial: some images are there.")
    task: str | None = Field(
        None, description="text2img, img2img, inpainting, batch or train; null where unknown."
    )
    images: tuple[ImageResult, ...] = ()
    failure: Failure | None = None
    warnings: tuple[Note, ...] = ()
    metadata: dict[str, Any] = Field(default_factory=dict, description="The request's, unchanged.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="The plan: every default resolved, every seed drawn."
    )
    timings: Timings | None = None
    model: ModelUsed | None = None
    refiner: ModelUsed | None = Field(
        None,
        description="The second model, which drew the last part of the steps; else left out.",
        exclude_if=lambda refiner: refiner is None,
    )
    versions: dict[str, str] = Field(default_factory=dict, description="Of Dreamdrop and the libraries.")
    worker: str = Field("", description="The session that ended it; empty where a client did.")
    attempts: int = Field(1, description="Attempts that counted, the last one included.")
    finished_at: str = Field("", description="ISO 8601, UTC, by the worker's clock; for people.")
    batch: BatchResult | None = None
    fingerprint: str = Field(description="SHA-256 of the request's bytes.")
    request: Frozen

    @classmethod
    def ended(
        cls,
        id: str,
        status: Status,
        failure: Failure | None,
        *,
        request: Frozen,
        fingerprint: str,
        finished_at: str | None = None,
        metadata: dict[str, Any] | None = None,
        **facts: Any,
    ) -> Self:
        """The result of a request that ends without pictures.

        Args:
            finished_at: by default now.
            metadata: by default what the frozen request says.
            facts: the result's other fields, such as `worker` and `attempts`.
        """
        return cls(
            id=id,
            status=status,
            failure=failure,
            request=request,
            fingerprint=fingerprint,
            finished_at=utc_now() if finished_at is None else finished_at,
            metadata=request.metadata() if metadata is None else metadata,
            **facts,
        )

    @classmethod
    def damaged(cls, id: str, key: str) -> Self:
        """What stands for a result manifest that cannot be read: it is there for ever, so the request is over."""
        text = f"{key} cannot be read: it is empty, damaged or of a version that is not known here"
        failure = Failure(code="invalid_json", message=text)
        return cls(id=id, status="failed", failure=failure, fingerprint="", request=Frozen(text="", cut=True))

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=2, exclude_defaults=False).encode() + b"\n"


class Progress(_Part):
    """`status/<id>.json`: how far a request is. Advisory, for people and progress bars."""

    id: str = Field(description="The request's id.")
    status: Literal["queued", "processing"] = Field("processing", description="queued: claimed, not begun.")
    steps_done: int = Field(0, description="Of all images together.")
    steps_total: int = Field(0, description="Of all images together.")
    images_done: int = Field(0, description="Images that are stored.")
    images_total: int = Field(0, description="Images that were asked for.")
    worker: str = Field("", description="The session that draws it.")
    attempts: int = Field(1, description="Attempts that counted, this one included.")
    eta: float | None = Field(
        None,
        ge=0,
        description="Estimated seconds that remain; null before there is an estimate.",
    )
    preview: str = Field(
        "",
        description="A preview of its first unfinished image: a data URI of a JPEG, a few kilobytes; empty when "
        "there is none.",
    )


def digest(document: dict[str, Any]) -> str:
    """SHA-256 of a document in canonical JSON; a *plan hash* is that of a plan."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def utc_now() -> str:
    """The date and time in UTC, ISO 8601 with milliseconds; for people, never compared."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
