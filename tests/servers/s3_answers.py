"""The bytes of an S3 server's answers: XML documents, headers, and answers that break off."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.sax.saxutils import escape

from aiohttp import web

if TYPE_CHECKING:
    from infra.stores.store import Stored

#: What can go wrong with a request, by the name that a `Fault` has.
KINDS = {
    "slow_down": "503 SlowDown, nothing done",
    "conflict": "409 ConditionalRequestConflict, nothing done",
    "broken": "500, nothing done",
    "broken_after": "500, but it was done",
    "cut": "the connection closes, nothing done",
    "cut_after": "the connection closes, but it was done",
    "late": "the connection closes, and it is done `seconds` later",
    "delay": "it is done after `seconds`",
    "denied": "403 AccessDenied",
    "object_lock": "400 InvalidRequest to a PUT without a checksum",
    "refused": "`status`, `code` and `text`, nothing done",
    "unsupported": "501 NotImplemented when the request has a condition",
    "ignore_condition": "conditions are ignored",
    "check_then_act": "creates look first and write later, so that two may win",
    "half": "the answer's body breaks off in the middle",
}


def entry(key: str, size: int, tag: str, modified: float) -> str:
    return (
        f"<Contents><Key>{escape(quote(key))}</Key><Size>{size}</Size><ETag>&quot;{tag}&quot;</ETag>"
        f"<LastModified>{iso(modified)}</LastModified></Contents>"
    )


def conditions(request: web.Request) -> bool:
    return "If-None-Match" in request.headers or "If-Match" in request.headers


def headers(metadata: object, modified: float) -> dict[str, str]:
    assert isinstance(metadata, dict)
    own = {f"x-amz-meta-{name}": value for name, value in metadata.items() if name != "content-md5"}
    date = datetime.fromtimestamp(modified, UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    return {**own, "ETag": f'"{metadata["content-md5"]}"', "Last-Modified": date}


def own_metadata(request: web.Request) -> dict[str, str]:
    """The metadata that a request gives to its object."""
    return {
        name.lower().removeprefix("x-amz-meta-"): value
        for name, value in request.headers.items()
        if name.lower().startswith("x-amz-meta-")
    }


def content(request: web.Request, found: Stored) -> web.Response:
    """An object's content, or the rest of it from where a Range begins."""
    facts = headers(found.info.metadata, found.info.modified)
    wanted = request.headers.get("If-Match")
    if wanted and wanted != facts["ETag"]:
        return error(412, "PreconditionFailed")
    begin = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    if not begin:
        return web.Response(body=found.body, headers=facts)
    size = len(found.body)
    facts["Content-Range"] = f"bytes {begin}-{size - 1}/{size}"
    return web.Response(status=206, body=found.body[begin:], headers=facts)


def iso(modified: float) -> str:
    return datetime.fromtimestamp(modified, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def xml(text: str, status: int = 200) -> web.Response:
    document = f'<?xml version="1.0" encoding="UTF-8"?>{text}'
    return web.Response(text=document, status=status, content_type="application/xml")


def error(status: int, code: str, text: str = "on demand") -> web.Response:
    return xml(f"<Error><Code>{code}</Code><Message>{escape(text)}</Message></Error>", status)


def cut(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def half(request: web.Request, answer: web.Response) -> web.StreamResponse:
    body = answer.body if isinstance(answer.body, bytes) else b""
    part = web.StreamResponse(headers={**answer.headers, "Content-Length": str(len(body))})
    await part.prepare(request)
    await part.write(body[: len(body) // 2])
    return cut(request)


def setting(name: str, *, versioned: bool) -> web.Response:
    """A bucket's versioning, or its lifecycle, of which it has none."""
    if name == "lifecycle":
        return error(404, "NoSuchLifecycleConfiguration")
    status = "<Status>Enabled</Status>" if versioned else ""
    return xml(f"<VersioningConfiguration>{status}</VersioningConfiguration>")


def refusal(request: web.Request, keys: dict[str, tuple[int, str]]) -> web.Response | None:
    """The answer to a refused access key; None for any other."""
    for key, (status, code) in keys.items():
        if f"Credential={key}/" in request.headers.get("Authorization", ""):
            return error(status, code)
    return None


def no_checksum() -> web.Response:
    """What a bucket with object lock says to a PUT without a checksum."""
    text = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests"
    return error(400, "InvalidRequest", text)
