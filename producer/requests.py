"""Turns a caller's request into the bytes that are dropped, checked as a worker checks them.

The bytes are the request: the same bytes under the same id are the same request. So a file is dropped as
it is, and a document is always written the same way.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from infra import traces
from producer.errors import Conflict
from schemas.batch import split_rows
from schemas.errors import Rejected
from schemas.layout import BATCH, CHOSEN_ID, EXPRESS, REQUESTS, SINGLE, fingerprint, is_id, request_id
from schemas.limits import Limits
from schemas.manifest import parse_manifest

#: A document, one of `schemas.manifest`'s models, JSON as bytes, or a JSON file's path.
Request = Mapping[str, Any] | BaseModel | bytes | str | os.PathLike[str]

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What `submit` returns: enough to ask for the result, now or in another process."""

    id: str
    key: str  # where the request was dropped; "" when it is a queue's message only
    fingerprint: str  # of its bytes

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True, slots=True)
class Parcel:
    """A checked request, ready to be dropped."""

    ticket: Ticket
    body: bytes
    chosen: bool  # the caller chose the id, so another request may have it


def fresh_id() -> str:
    """A new id: nine characters of time, so that ids sort by age, and seven random ones."""
    milliseconds, text = time.time_ns() // 1_000_000, ""
    for _ in range(9):
        milliseconds, digit = divmod(milliseconds, 36)
        text = _ALPHABET[digit] + text
    return text + "".join(secrets.choice(_ALPHABET) for _ in range(7))


def parcel(request: Request, *, id: str | None, express: bool, limits: Limits) -> Parcel:
    """Check one request and choose its key.

    Raises:
        Rejected: the manifest can never succeed; the message is the same as a worker's.
        Conflict: it carries one id and is submitted under another.
    """
    body = _bytes(request)
    manifest = parse_manifest(body, limits)
    if id is not None and manifest.id is not None and id != manifest.id:
        raise Conflict(id, f"the manifest's own id is {manifest.id!r}")
    name = id or manifest.id
    key = _key(name, SINGLE, express)
    return Parcel(Ticket(manifest.id or request_id(key), key, fingerprint(body)), body, name is not None)


def batch_parcel(
    rows: bytes | str | os.PathLike[str], *, id: str | None, express: bool, limits: Limits
) -> Parcel:
    """Check a file of many requests, one JSON object a line.

    Raises:
        Rejected: with the line of the first row that can never succeed.
    """
    body = rows if isinstance(rows, bytes) else read_file(rows)
    key = _key(id, BATCH, express)
    batch = request_id(key)
    for row in split_rows(batch, body, limits):
        try:
            parse_manifest(row.body, limits)
        except Rejected as fault:
            where = f", column {fault.column}" if fault.column and fault.code == "invalid_json" else ""
            text = fault.message.split(": ", 1)[-1] if where else fault.message
            raise Rejected(
                fault.code,
                f"line {row.line}{where}: {text}",
                field=fault.field,
                line=row.line,
                column=fault.column,
            ) from fault
    return Parcel(Ticket(batch, key, fingerprint(body)), body, id is not None)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """A file's bytes. Raises `Rejected` when it cannot be read."""
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        hint = (
            "; to draw a prompt, use submit({'prompt': ...})" if isinstance(error, FileNotFoundError) else ""
        )
        raise Rejected(
            "invalid_manifest", f"cannot read {os.fspath(path)!r}: {error.strerror}{hint}"
        ) from error


def _bytes(request: Request) -> bytes:
    if isinstance(request, bytes):
        return request
    if isinstance(request, BaseModel):
        return _json(request.model_dump(mode="json", exclude_unset=True))
    if isinstance(request, Mapping):
        return _json(request)
    return read_file(request)


def _json(document: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(document, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise Rejected("invalid_manifest", f"the manifest cannot be written as JSON: {error}") from error


def _key(name: str | None, extension: str, express: bool) -> str:
    if name is not None and not (is_id(name) and all(CHOSEN_ID.fullmatch(part) for part in name.split("/"))):
        raise Rejected(
            "invalid_manifest",
            f"id {name[:60]!r} may contain only letters, digits, '.', '_' and '-', in parts of at most 100 "
            "characters that begin with a letter or digit; '/' separates folders",
            field="id",
        )
    return f"{EXPRESS if express else REQUESTS}{name or fresh_id()}{extension}"


async def traced(parcel: Parcel, drop: Callable[[Parcel], Awaitable[Ticket]]) -> Ticket:
    """Drop a request, and send a span of how long that took."""
    began = time.monotonic()
    ticket = await drop(parcel)
    submitted(parcel, time.monotonic() - began)
    return ticket


def submitted(parcel: Parcel, seconds: float) -> None:
    """Send the span of a request that was dropped or sent."""
    ticket = parcel.ticket
    traces.record("submit", ticket.id, ticket.fingerprint, lambda: parcel.body, seconds=seconds, top=True)
