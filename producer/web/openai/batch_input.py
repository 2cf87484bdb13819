"""The lines of an OpenAI batch: checked, translated into rows of a batch, and counted while they are drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel

from infra.gather import gather_bounded
from infra.lru import LruCache
from producer import request_state
from producer.web.openai import fields as openai_fields
from producer.web.openai.batch_output import METADATA
from producer.web.openai.errors import in_openai_words
from schemas.batch import numbered
from schemas.errors import Rejected
from schemas.layout import CHOSEN_ID, parse_result, result_folder
from schemas.manifest import validate_manifest
from schemas.text.strictjson import load_object

if TYPE_CHECKING:
    from infra.stores.store import Info, Store
    from schemas.limits import Limits

ENDPOINT = "/v1/images/generations"
MAX_FAULTS = 100  # mistakes after which the rest of a file is not checked
AT_ONCE = 16  # results read at the same time
KEPT = 100_000  # finished rows that are remembered
_LINE_FIELDS = {"custom_id", "method", "url", "body"}


class LineFault(BaseModel):
    """A mistake in a line."""

    code: str
    line: int | None = None
    message: str
    param: str | None = None


@dataclass
class ParsedFile:
    """A file of requests as rows of a batch."""

    rows: list[bytes] = field(default_factory=list)
    faults: list[LineFault] = field(default_factory=list)


def read_lines(body: bytes, limits: Limits, expires_at: int) -> ParsedFile:
    """Check and translate every line; blank lines are skipped.

    Args:
        expires_at: seconds since 1970; rows that are not started by then expire.
    """
    parsed, lines_by_name = ParsedFile(), dict[str, int]()
    deadline = datetime.fromtimestamp(expires_at, UTC).isoformat()
    for number, line in numbered(body):
        if len(parsed.rows) >= limits.max_batch_rows:
            text = f"the file has more than {limits.max_batch_rows:,} requests; split it"
            parsed.faults.append(LineFault(code="too_large", line=number, message=text))
            return parsed
        try:
            parsed.rows.append(_row(line, number, lines_by_name, deadline, limits))
        except Rejected as error:
            param, message = in_openai_words(error.field, error.message)
            fault = LineFault(code=error.code, line=number, message=message, param=param)
            parsed.faults.append(fault)
            if len(parsed.faults) == MAX_FAULTS:
                return parsed
    if not parsed.rows and not parsed.faults:
        text = "the file has no requests; write one JSON object per line"
        parsed.faults.append(LineFault(code="empty_file", message=text))
    return parsed


def _row(line: bytes, number: int, lines_by_name: dict[str, int], expires_at: str, limits: Limits) -> bytes:
    request = load_object(line, what="a line")
    if unknown := request.keys() - _LINE_FIELDS:
        raise Rejected.of_field(
            min(unknown)[:60], f"is an unknown field; a line has {', '.join(sorted(_LINE_FIELDS))}"
        )
    name, body = request.get("custom_id"), request.get("body")
    if not isinstance(name, str) or not 0 < len(name) <= 500:
        raise Rejected.of_field("custom_id", "should be a string that names the request within the file")
    if name in lines_by_name:
        raise Rejected.of_field("custom_id", f"{name[:60]!r} is used in line {lines_by_name[name]} already")
    lines_by_name[name] = number
    if request.get("method") != "POST" or request.get("url") != ENDPOINT:
        raise Rejected.of_field("url", f"should be {ENDPOINT!r}, and method 'POST'")
    if not isinstance(body, dict):
        raise Rejected.of_field("body", f"should be an object, as for {ENDPOINT}")
    if "id" in body or "custom_id" in body:
        raise Rejected.of_field("id", "is not a field of a line's body; set custom_id beside the body")
    translation = openai_fields.manifest_of(body)
    manifest = {"expires_at": expires_at, **translation.manifest}
    metadata = manifest.get("metadata", {})
    if isinstance(metadata, dict):
        line_fields = {"custom_id": name, "response_format": translation.response_format}
        manifest["metadata"] = {**metadata, METADATA: line_fields}
    validate_manifest(manifest, limits)
    if CHOSEN_ID.fullmatch(name):  # else the row is named after its line
        manifest["custom_id"] = name
    return json.dumps(manifest, ensure_ascii=False).encode()


@dataclass
class Tally:
    """Counts the finished rows of batches with and without pictures; reads each row once. For one event loop."""

    #: key and etag to whether it has pictures
    _ended: LruCache[tuple[str, str], bool] = field(default_factory=lambda: LruCache(KEPT))

    async def count(self, store: Store, batch: str) -> tuple[int, int]:
        """A batch's finished rows: with pictures, without."""

        async def has_pictures(row: tuple[str, Info]) -> bool:
            id, info = row
            known = self._ended.get((info.key, info.etag))
            if known is None:
                result = await request_state.read_result(store, id)
                known = result is not None and bool(result.images)
                self._ended[info.key, info.etag] = known
            return known

        listing = store.list(result_folder(batch))
        rows = [(id, info) async for info in listing if (id := parse_result(info.key)) and id != batch]
        completed = sum(await gather_bounded(rows, AT_ONCE, has_pictures))
        return completed, len(rows) - completed
