"""Errors below `/v1` in the shape that OpenAI's clients read, in our own words."""

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
from schemas.errors import DreamError, Rejected

ROOT = "/v1/"
#: What a manifest's field is called in a body of theirs.
THEIRS = {"number_of_images": "n", "width": "size", "height": "size", "mask_image": "mask"}
#: A second try would be drawn again, or fail again; their clients try by themselves unless they are told.
FINAL = {409, 410, 500, 504}


class Fault(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(BaseModel):
    """What is wrong, and what to do."""

    error: Fault


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error responses for the OpenAPI document."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": Error, "description": HTTPStatus(status).phrase} for status in statuses
    }
    return found


LOOKING = documented(400, 401, 404, 503)  # what any look at the store may answer


def is_theirs(request: Request) -> bool:
    return request.url.path.startswith(ROOT)


def told(fault: DreamError) -> Response:
    """A refusal or failure. 422 is 400 here: what their clients raise as `BadRequestError`."""
    status, _, headers = responses.error(fault)
    said = fault.failure if isinstance(fault, responses.Undrawn) else fault
    field = getattr(said, "field", None)
    param = THEIRS.get(field, field) if isinstance(field, str) else None
    code = getattr(said, "code", None) if isinstance(fault, (Rejected, responses.Undrawn)) else None
    text = responses.words(fault)
    if isinstance(field, str) and param and param != "size" and text.startswith(f"{field} "):
        text = param + text[len(field) :]
    return shaped(400 if status == 422 else status, text, headers, param=param, code=code)


def shaped(
    status: int,
    text: str,
    headers: dict[str, str] | None = None,
    *,
    param: str | None = None,
    code: str | None = None,
) -> Response:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    body = Error(error=Fault(message=text, type=kind, param=param, code=code or CODES.get(status)))
    retry = {"x-should-retry": "false"} if status in FINAL else {}
    return JSONResponse(body.model_dump(), status, {**(headers or {}), **retry})


CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


async def http_error(request: Request, fault: Exception) -> Response:
    """What the routes and the framework say with a status, such as 401 and 404."""
    assert isinstance(fault, HTTPException)
    if is_theirs(request):
        return shaped(fault.status_code, str(fault.detail), dict(fault.headers or {}))
    return await http_exception_handler(request, fault)


async def invalid(request: Request, fault: Exception) -> Response:
    """A parameter that FastAPI refuses."""
    assert isinstance(fault, RequestValidationError)
    if is_theirs(request):
        first = fault.errors()[0]
        name = str(first["loc"][-1])
        return shaped(400, f"{name}: {first['msg']}", param=name, code="invalid_value")
    return await request_validation_exception_handler(request, fault)


def tidy(document: dict[str, Any]) -> None:
    """FastAPI documents 422 wherever it checks a parameter; below `/v1` that is 400."""
    for path, operations in document["paths"].items():
        if path.startswith(ROOT):
            for operation in operations.values():
                operation["responses"].pop("422", None)
