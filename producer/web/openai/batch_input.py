"""The lines of an OpenAI batch: checked and translated into rows of ours, and counted while they are drawn."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel

from producer import request_state
from producer.web.openai import fields as openai_fields
from producer.web.openai.batch_output import MARK
from producer.web.openai.fields import refused
from schemas.batch import numbered
from schemas.errors import Rejected
from schemas.layout import CHOSEN_ID, COMMIT, RESULTS, result_folder
from schemas.manifest import validate_manifest
from schemas.strictjson import load_object

if TYPE_CHECKING:
    from infra.stores.store import Info, Store
    from schemas.limits import Limits

ENDPOINT = "/v1/images/generations"
MOST_FAULTS = 100  # that are told; whoever mends a hundred will look again
AT_ONCE = 16  # results read at the same time
KEPT = 100_000  # rows whose end is remembered
_KNOWN = {"custom_id", "method", "url", "body"}


class LineFault(BaseModel):
    """A mistake in a line."""

    code: str
    line: int | None = None
    message: str
    param: str | None = None


@dataclass
class Read:
    """A file of requests, as rows of ours."""

    rows: list[bytes] = field(default_factory=list)
    faults: list[LineFault] = field(default_factory=list)


def read_lines(body: bytes, limits: Limits, expires_at: int) -> Read:
    """Check and translate every line; blank ones are passed over.

    Args:
        expires_at: seconds since 1970; rows that are not begun by then end as expired.
    """
    found, seen = Read(), dict[str, int]()
    moment = datetime.fromtimestamp(expires_at, UTC).isoformat()
    for number, line in numbered(body):
        if len(found.rows) >= limits.max_batch_rows:
            text = f"the file has more than {limits.max_batch_rows:,} requests; cut it in parts"
            found.faults.append(LineFault(code="too_large", line=number, message=text))
            return found
        try:
            found.rows.append(_row(line, number, seen, moment, limits))
        except Rejected as fault:
            said = LineFault(code=fault.code, line=number, message=fault.message, param=fault.field)
            found.faults.append(said)
            if len(found.faults) == MOST_FAULTS:
                return found
    if not found.rows and not found.faults:
        text = "the file has no requests; write one JSON object a line"
        found.faults.append(LineFault(code="empty_file", message=text))
    return found


def _row(line: bytes, number: int, seen: dict[str, int], expires_at: str, limits: Limits) -> bytes:
    asked = load_object(line, what="a line")
    if unknown := asked.keys() - _KNOWN:
        raise refused(min(unknown)[:60], f"is unknown; a line has {', '.join(sorted(_KNOWN))}")
    name, body = asked.get("custom_id"), asked.get("body")
    if not isinstance(name, str) or not 0 < len(name) <= 500:
        raise refused("custom_id", "should be a text that names the request within the file")
    if name in seen:
        raise refused("custom_id", f"{name[:60]!r} is that of line {seen[name]}, too; each needs its own")
    seen[name] = number
    if asked.get("method") != "POST" or asked.get("url") != ENDPOINT:
        raise refused("url", f"should be {ENDPOINT!r}, and method 'POST'")
    if not isinstance(body, dict):
        raise refused("body", f"should be an object, as for {ENDPOINT}")
    if "id" in body or "custom_id" in body:
        raise refused("id", "is no field of a line's body; name it by custom_id beside it")
    wanted = openai_fields.words(body)
    manifest = {"expires_at": expires_at, **wanted.manifest}
    metadata = manifest.get("metadata", {})
    if isinstance(metadata, dict):
        mark = {"custom_id": name, "response_format": wanted.way}
        manifest["metadata"] = {**metadata, MARK: mark}
    validate_manifest(manifest, limits)
    if CHOSEN_ID.fullmatch(name):  # else the row is known by its line
        manifest["custom_id"] = name
    return json.dumps(manifest, ensure_ascii=False).encode()


@dataclass
class Tally:
    """How many rows of a batch have pictures, and how many have none; a row is read once. For one event loop."""

    _ended: dict[tuple[str, str], bool] = field(
        default_factory=dict
    )  # key and etag to whether it has pictures

    async def count(self, store: Store, batch: str) -> tuple[int, int]:
        """Rows of a batch that are over: with pictures, without."""
        folder, gate = result_folder(batch), asyncio.Semaphore(AT_ONCE)

        async def has_pictures(info: Info) -> bool:
            known = self._ended.get((info.key, info.etag))
            if known is None:
                async with gate:
                    result = await request_state.read_result(store, info.key[len(RESULTS) : -len(COMMIT) - 1])
                known = result is not None and bool(result.images)
                if len(self._ended) >= KEPT:
                    self._ended.clear()
                self._ended[info.key, info.etag] = known
            return known

        infos = [
            info
            async for info in store.list(folder)
            if info.key.endswith(f"/{COMMIT}") and info.key != f"{folder}{COMMIT}"
        ]
        good = sum(await asyncio.gather(*map(has_pictures, infos)))
        return good, len(infos) - good
