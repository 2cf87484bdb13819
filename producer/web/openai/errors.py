"""Error responses under `/v1` in the shape that OpenAI's clients read, with this server's messages."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exception_handlers import http_exception_handler, request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from producer.web import responses
from producer.web.naming import in_their_words
from schemas.errors import DreamError, Rejected

ROOT = "/v1/"
#: A manifest's field to its name in OpenAI's bodies.
OPENAI_NAMES = {"number_of_images": "n", "width": "size", "height": "size", "mask_image": "mask"}
#: OpenAI's clients retry by themselves. After these statuses a retry would draw again, or fail again.
NO_RETRY = {409, 410, 500, 504}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


class Fault(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(BaseModel):
    """What is wrong, and what to do about it."""

    error: Fault


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of an endpoint, for the OpenAPI document."""
    return {status: {"model": Error, "description": HTTPStatus(status).phrase} for status in statuses}


READ_ERRORS = errors(400, 401, 404, 503)  # what any endpoint that reads the store may answer


def is_openai_path(request: Request) -> bool:
    return request.url.path.startswith(ROOT)


def in_openai_words(field: str | None, message: str) -> tuple[str | None, str]:
    """The field and message of a refusal, with OpenAI's names. A message on a side keeps saying which side it is."""
    names = {ours: theirs for ours, theirs in OPENAI_NAMES.items() if theirs != "size"}
    if field in OPENAI_NAMES and field not in names:
        return OPENAI_NAMES[field], message
    return in_their_words(field, message, names)


def error_response(error: DreamError) -> Response:
    """The response for an error. 422 becomes 400, which OpenAI's clients raise as `BadRequestError`."""
    status, _, headers = responses.error_parts(error)
    failure = error.failure if isinstance(error, responses.NoPictures) else error
    code = getattr(failure, "code", None) if isinstance(error, (Rejected, responses.NoPictures)) else None
    field = getattr(failure, "field", None)
    param, message = in_openai_words(field if isinstance(field, str) else None, responses.message_for(error))
    return _response(400 if status == 422 else status, message, headers, param=param, code=code)


def _response(
    status: int,
    message: str,
    headers: dict[str, str] | None = None,
    *,
    param: str | None = None,
    code: str | None = None,
) -> Response:
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = Error(error=Fault(message=message, type=kind, param=param, code=code or CODES.get(status)))
    retry = {"x-should-retry": "false"} if status in NO_RETRY else {}
    return JSONResponse(body.model_dump(), status, {**(headers or {}), **retry})


async def http_error(request: Request, error: Exception) -> Response:
    """The response for an `HTTPException` of a route or of the framework, such as 401 and 404."""
    assert isinstance(error, HTTPException)
    if is_openai_path(request):
        return _response(error.status_code, str(error.detail), dict(error.headers or {}))
    return await http_exception_handler(request, error)


async def invalid_parameter(request: Request, error: Exception) -> Response:
    """The response for a query parameter that FastAPI refuses."""
    assert isinstance(error, RequestValidationError)
    if is_openai_path(request):
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return _response(400, f"{name}: {first['msg']}", param=name, code="invalid_value")
    return await request_validation_exception_handler(request, error)


def drop_422(document: dict[str, Any]) -> None:
    """Remove the 422 that FastAPI documents for every checked parameter; under `/v1` it is 400."""
    for path, operations in document["paths"].items():
        if path.startswith(ROOT):
            for operation in operations.values():
                operation["responses"].pop("422", None)
