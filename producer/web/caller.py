"""What every route needs of a request: the facade, who is calling, and the body as one JSON object."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from starlette.requests import ClientDisconnect

from producer.web.api_keys import NOBODY, Key, given, whose
from producer.web.facade import CallerGone, Facade
from schemas.errors import Rejected, TooLarge
from schemas.layout import CHOSEN_ID, is_id
from schemas.strictjson import load_object

FORM = re.compile(
    rb"[\w.%+-]{1,100}="
)  # how a form begins; `curl -d` calls every body one, so its name says nothing
LONG = 1 << 18  # bytes of a body that is read in a thread, so that other callers are answered meanwhile


def facade_of(request: Request) -> Facade:
    facade: Facade = request.app.state.facade
    return facade


def caller_of(request: Request) -> Key:
    """Who is calling. Raises 401 where keys are asked for and none of them is given."""
    keys = facade_of(request).settings.keys
    if not keys:
        return NOBODY
    sent = given(request.headers)
    key = whose(sent, keys)
    if key is None:
        wrong = "this server does not know the key that was sent" if sent else "a key is needed"
        raise HTTPException(
            401,
            f"{wrong}: send yours as `Authorization: Bearer ...` or `X-API-Key`, or as the password of a "
            "browser's question",
            {"WWW-Authenticate": 'Basic realm="Dreamdrop", charset="UTF-8"'},
        )
    return key


FacadeOf = Annotated[Facade, Depends(facade_of)]
Caller = Annotated[Key, Depends(caller_of)]


async def document(request: Request) -> dict[str, Any]:
    """The body. Raises `Rejected` with line and column when it is not one JSON object."""
    raw = await body(request, facade_of(request).settings.limits.max_body_bytes)
    make_sure_it_is_no_form(request, raw, 'one JSON object, such as {"prompt": "a red circle"}')
    return await asyncio.to_thread(load_object, raw) if len(raw) > LONG else load_object(raw)


async def body(request: Request, most: int) -> bytes:
    """The body's bytes, never more in memory than allowed. Raises `TooLarge`, `CallerGone`."""
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > most:
        raise TooLarge("the request", int(told), most)
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise TooLarge("the request", size, most)
            parts.append(part)
    except ClientDisconnect as error:
        raise CallerGone("the caller has left in the middle of its body") from error
    return b"".join(parts)


def make_sure_it_is_no_form(request: Request, raw: bytes, wanted: str) -> None:
    """Raises `Rejected` for a form, which is what clients send who are told of fields."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data" or FORM.match(raw):
        raise Rejected("invalid_json", f"the body is a form; send {wanted}", line=1, column=1)


def own_id(caller: Key, id: str) -> str:
    """What a caller calls an id, in the store. Raises 404 for what can be no id."""
    if not is_id(id):
        raise HTTPException(404, f"{id[:100]!r} is no id")
    return caller.id(id)


def new_id(caller: Key, id: str) -> str:
    """The same for an id that a caller chooses. Raises `Rejected`."""
    if not CHOSEN_ID.fullmatch(caller.id(id)):
        raise Rejected(
            "invalid_manifest",
            f"id {id[:60]!r} may hold letters, digits, '.', '_' and '-' only, begins with a letter or digit, and has "
            "at most 100 characters",
            field="id",
        )
    return caller.id(id)


async def left(request: Request) -> None:
    """Return when the caller has gone. To be called after the body was read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def preferred(request: Request) -> dict[str, str]:
    """RFC 7240's `Prefer` header: names to values."""
    header = ",".join(request.headers.getlist("prefer"))
    return {
        name.strip().lower(): value.strip().strip('"')
        for name, _, value in (part.partition("=") for part in re.split(r"[,;]", header))
        if name.strip()
    }


def patience(request: Request) -> float:
    """Seconds that a synchronous call may last: the caller's `Prefer: wait=N`, bounded by the settings."""
    most = facade_of(request).settings.wait
    asked = preferred(request).get("wait", "")
    return min(most, float(asked)) if asked.isdecimal() else most
