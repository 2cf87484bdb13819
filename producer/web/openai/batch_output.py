"""A batch's answers as files of OpenAI's: a line for each row, those with pictures in one file, the rest in another.

They are made while they are read, a row at a time, so that a batch of many thousand pictures fits.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.stores.store import Store
from producer import collect, request_state
from producer.errors import Damaged
from producer.web import responses
from producer.web.openai.results import answered, seconds
from schemas.result import Result

if TYPE_CHECKING:
    from producer.web.facade import Facade

OUTPUT, ERRORS = "-output", "-errors"  # behind a batch's id, an id of its file
MARK = "openai"  # where a row's metadata keep what their line said


@dataclass(frozen=True, slots=True)
class Answers:
    """One of a batch's two files."""

    id: str
    batch: str
    good: bool
    created_at: int


async def find(id: str, facade: Facade) -> Answers | None:
    """A file of a batch that is over; None for an id of any other file, or of none."""
    for suffix in (OUTPUT, ERRORS):
        batch = id.removesuffix(suffix)
        if batch != id and "batch_" in batch:
            result = await request_state.read_result(facade.client.store, batch)
            if result is not None:
                return Answers(id, batch, suffix == OUTPUT, seconds(result.finished_at) or 0)
    return None


async def lines(file: Answers, store: Store, base: str) -> AsyncIterator[bytes]:
    """The file's lines. `base`: this server's address, as the caller knows it."""
    async for row in collect.rows(store, file.batch):
        if bool(row.images) == file.good:
            yield json.dumps(await _line(row, store, base), ensure_ascii=False).encode() + b"\n"


async def _line(row: Result, store: Store, base: str) -> dict[str, Any]:
    said = _said(row)
    line = {"id": f"batch_req_{row.id}", "custom_id": said["custom_id"], "response": None, "error": None}
    if not row.images:
        failure = row.failure
        return line | {
            "error": {
                "code": failure.code if failure else row.status,
                "message": failure.message if failure else f"the request {row.status}",
            }
        }
    try:
        images = await responses.pictures(store, row) if said["response_format"] == "b64_json" else None
    except Damaged as error:
        return line | {"error": {"code": "damaged", "message": str(error)}}
    body = answered(row, images, base).model_dump(mode="json", exclude_none=True)
    return line | {"response": {"status_code": 200, "request_id": row.id, "body": body}}


def _said(row: Result) -> dict[str, Any]:
    """What the row's line said that no manifest knows; a canceled result has it in its request only."""
    found = row.metadata.get(MARK)
    if not isinstance(found, dict):
        try:
            found = json.loads(row.request.body())["metadata"][MARK]
        except (ValueError, KeyError, TypeError):
            found = {}
    return {"custom_id": row.id.rpartition("/")[2], "response_format": "b64_json", **found}
