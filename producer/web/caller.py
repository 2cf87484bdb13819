"""What every route needs: the facade, who is calling, their ids, and the body as one JSON object."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from starlette.requests import ClientDisconnect

from producer.web.api_keys import ANONYMOUS, Key, caller_with, key_in
from producer.web.facade import CallerGone, Facade
from schemas.errors import Rejected, TooLarge
from schemas.layout import CHOSEN_ID, is_id
from schemas.result import Result
from schemas.text.strictjson import load_object, path_of_infinity

FORM = re.compile(rb"[\w.%+-]{1,100}=")  # how a form starts: `curl -d` sends its content type with every body
LARGE = 1 << 18  # bytes from which a body is parsed in a thread, so that it does not block other callers


def facade_of(request: Request) -> Facade:
    facade: Facade = request.app.state.facade
    return facade


def caller_of(request: Request) -> Key:
    """The caller. Raises 401 when keys are required and the request has none of them."""
    keys = facade_of(request).settings.keys
    if not keys:
        return ANONYMOUS
    key = key_in(request.headers)
    caller = caller_with(key, keys)
    if caller is None:
        reason = "this server does not know the key that was sent" if key else "a key is needed"
        raise HTTPException(
            401,
            f"{reason}: send it as `Authorization: Bearer ...`, as `X-API-Key`, or as the password in the browser",
            {"WWW-Authenticate": 'Basic realm="Dreamdrop", charset="UTF-8"'},
        )
    return caller


FacadeOf = Annotated[Facade, Depends(facade_of)]
Caller = Annotated[Key, Depends(caller_of)]


async def document(request: Request) -> dict[str, Any]:
    """The body as JSON. Raises `Rejected` with line and column when it is not one JSON object."""
    raw = await body(request, facade_of(request).settings.limits.max_body_bytes)
    refuse_form(request, raw, 'one JSON object, such as {"prompt": "a red circle"}')
    return await asyncio.to_thread(_finite_object, raw) if len(raw) > LARGE else _finite_object(raw)


def _finite_object(raw: bytes) -> dict[str, Any]:
    """One JSON object, without numbers such as 1e999, which an answer could not repeat. Raises `Rejected`."""
    found = load_object(raw)
    if (path := path_of_infinity(found)) is not None:
        raise Rejected.of_field(path[:200], "is not a finite number")
    return found


async def body(request: Request, limit: int) -> bytes:
    """The body, at most `limit` bytes of it in memory. Raises `TooLarge`, `CallerGone`, and 415 for its encoding."""
    compressed = _is_gzip(request)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise TooLarge("the request", int(announced), limit)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise TooLarge("the request", size, limit)
            parts.append(part)
    except ClientDisconnect as error:
        raise CallerGone("the caller disconnected while it sent its body") from error
    raw = b"".join(parts)
    return await asyncio.to_thread(_gunzip, raw, limit) if compressed else raw


def _is_gzip(request: Request) -> bool:
    """Whether the body is compressed. Raises 415 for an encoding that is not read."""
    encodings = [e.strip().lower() for e in ",".join(request.headers.getlist("content-encoding")).split(",")]
    encodings = [encoding for encoding in encodings if encoding not in ("", "identity")]
    if encodings in ([], ["gzip"], ["x-gzip"]):
        return bool(encodings)
    text = f"Content-Encoding {', '.join(encodings)[:60]!r} is not read: send the body as it is, or once with gzip"
    raise HTTPException(415, text, {"Accept-Encoding": "gzip"})


def _gunzip(raw: bytes, limit: int) -> bytes:
    """Decompress a body. Raises `Rejected`, and `TooLarge` before more than `limit` bytes are in memory."""
    found, left = bytearray(), raw
    while left:  # a file may have many members
        member = zlib.decompressobj(wbits=31)
        try:
            found += member.decompress(left, limit + 1 - len(found))
        except zlib.error as error:
            raise Rejected(
                "invalid_json", "the body is not gzip, though its Content-Encoding says so"
            ) from error
        if len(found) > limit:
            raise TooLarge("the request, decompressed,", len(found), limit)
        if not member.eof:
            raise Rejected("invalid_json", "the body ends in the middle of its gzip data; send all of it")
        left = member.unused_data
    return bytes(found)


def refuse_form(request: Request, raw: bytes, expected: str) -> None:
    """Refuse a form, which callers send by mistake, and say what to send. Raises `Rejected`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data" or FORM.match(raw):
        raise Rejected("invalid_json", f"the body is a form; send {expected}", line=1, column=1)


def own_id(caller: Key, id: str) -> str:
    """The full id in the store of what a caller calls `id`. Raises 404 for what cannot be an id."""
    if not is_id(id):
        raise HTTPException(404, f"{id[:100]!r} is not a valid id")
    return caller.id(id)


def new_id(caller: Key, id: str) -> str:
    """The same for an id that a caller chooses. Raises `Rejected`."""
    if not CHOSEN_ID.fullmatch(caller.id(id)):
        raise Rejected.of_field(
            "id",
            f"{id[:60]!r} should be 1 to 100 letters, digits, '.', '_' and '-', starting with a letter or digit",
        )
    return caller.id(id)


async def result_of(id: str, facade: Facade) -> Result:
    """The result of a finished request. Raises `UnknownRequest`, and 409 when the request is not finished."""
    state = await facade.state(id)
    if state.result is None:
        state = await facade.client.status(id)  # the cached state may be older than the result
    if state.result is None:
        raise HTTPException(409, f"{id} is {state.status}: try again when it has finished")
    return state.result


async def draw(request: Request, facade: Facade, caller: Key, manifest: Mapping[str, Any]) -> Result:
    """Draw while the caller waits, see `Facade.draw`. To be called after the body was read."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return await facade.draw(manifest, caller, wait=_wait_seconds(request), gone=disconnected)


def preferences(request: Request) -> dict[str, str]:
    """The `Prefer` header (RFC 7240): names to values."""
    header = ",".join(request.headers.getlist("prefer"))
    return {
        name.strip().lower(): value.strip().strip('"')
        for name, _, value in (part.partition("=") for part in re.split(r"[,;]", header))
        if name.strip()
    }


def _wait_seconds(request: Request) -> float:
    """Seconds that a synchronous call may last: the caller's `Prefer: wait=N`, bounded by the settings."""
    longest = facade_of(request).settings.wait
    preferred = preferences(request).get("wait", "")
    return min(longest, float(preferred)) if preferred.isdecimal() else longest
