"""The output files of an OpenAI batch: one with a line for each row that has pictures, one for the other rows.

A file is made while it is read, one row at a time, so that its size does not matter.
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
from producer.web.openai.results import response_of, unix_seconds
from schemas.result import Result

if TYPE_CHECKING:
    from producer.web.facade import Facade

OUTPUT, ERRORS = "-output", "-errors"  # a file's id is its batch's id and one of these
METADATA = "openai"  # the key in a row's metadata under which its line's own fields are kept


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One of a batch's two files."""

    id: str
    batch: str
    with_pictures: bool  # which rows it has
    created_at: int  # seconds since 1970


async def find(id: str, facade: Facade) -> OutputFile | None:
    """An output file of a finished batch; None for any other id."""
    for suffix in (OUTPUT, ERRORS):
        batch = id.removesuffix(suffix)
        if batch != id and "batch_" in batch:
            result = await request_state.read_result(facade.client.store, batch)
            if result is not None:
                return OutputFile(id, batch, suffix == OUTPUT, unix_seconds(result.finished_at) or 0)
    return None


async def lines(file: OutputFile, store: Store, base_url: str) -> AsyncIterator[bytes]:
    """The file's lines. `base_url`: this server's address, as the caller knows it."""
    async for row in collect.rows(store, file.batch):
        if bool(row.images) == file.with_pictures:
            yield json.dumps(await _line(row, store, base_url), ensure_ascii=False).encode() + b"\n"


async def _line(row: Result, store: Store, base_url: str) -> dict[str, Any]:
    sent = _line_fields(row)
    line = {"id": f"batch_req_{row.id}", "custom_id": sent["custom_id"], "response": None, "error": None}
    if not row.images:
        failure = row.failure
        return line | {
            "error": {
                "code": failure.code if failure else row.status,
                "message": failure.message if failure else f"the request {row.status}",
            }
        }
    try:
        images = await responses.pictures(store, row) if sent["response_format"] == "b64_json" else None
    except Damaged as error:
        return line | {"error": {"code": "damaged", "message": str(error)}}
    body = response_of(row, images, base_url).model_dump(mode="json", exclude_none=True)
    return line | {"response": {"status_code": 200, "request_id": row.id, "body": body}}


def _line_fields(row: Result) -> dict[str, Any]:
    """The fields of the row's line that a manifest has no place for; a canceled result has them in its request only."""
    fields = row.metadata.get(METADATA)
    if not isinstance(fields, dict):
        try:
            fields = json.loads(row.request.body())["metadata"][METADATA]
        except (ValueError, KeyError, TypeError):
            fields = {}
    return {"custom_id": row.id.rpartition("/")[2], "response_format": "b64_json", **fields}
