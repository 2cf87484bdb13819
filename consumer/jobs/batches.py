"""A batch, which is a file of many requests: drops each row as a request, waits for all, and sums up.

Rows have fixed names, so after a crash another worker may repeat any of this without harm.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumer.jobs import gallery
from infra.backoff import backoff
from infra.claims.claim import answers
from infra.gather import gather_bounded
from schemas import layout
from schemas.batch import Row, split_rows
from schemas.errors import NotFound, Rejected
from schemas.result import BatchCounts, BatchResult, Failure, Result, Status, Timings

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.claims.claims import Held
    from infra.stores.store import Store
    from schemas.limits import Limits

log = logging.getLogger(__name__)

_IN_FLIGHT = 16  # store calls at a time
_POLL_INTERVAL = (0.1, 5.0)  # seconds between two looks for finished rows: first, longest
_IDLE_FACTOR = (
    9  # the pause is at least this many times a listing, which takes longer the more rows have ended
)
_SHOWN = 500  # pictures in a gallery page; more would make it too heavy to open


@dataclass
class Batches:
    """Runs the batches of one worker."""

    store: Store
    limits: Limits
    clock: Callable[[], float]
    session: str

    async def run(self, held: Held) -> Result:
        """The result of a claimed batch, once all its rows have ended; the caller commits it."""
        began, claim = self.clock(), held.claim
        try:
            rows = await asyncio.to_thread(split_rows, claim.id, claim.frozen.body(), self.limits)
        except Rejected as error:
            return self._result(held, began, "failed", Failure.of(error))
        ended = await self._ended_ids(claim.id)  # by an earlier attempt, which may have dropped all rows
        fresh = [row for row in rows if row.id not in ended]
        await gather_bounded(
            fresh,
            _IN_FLIGHT,
            lambda row: self.store.create(
                layout.request_key(row.id), row.body, content_type=layout.COMMIT_TYPE
            ),
        )
        log.info("batch dropped", extra={"id": claim.id, "rows": len(rows), "new": len(fresh)})
        results = await self._wait(claim.id, rows)
        return await self._sum_up(held, began, rows, results)

    async def _ended_ids(self, batch: str) -> set[str]:
        """The ids below a batch that have a result."""
        folder = layout.result_folder(batch)
        return {
            id async for info in self.store.list(folder) if (id := layout.parse_result(info.key)) is not None
        }

    async def _wait(self, batch: str, rows: list[Row]) -> dict[int, Result]:
        """Every row's result, by line, once there are all."""
        results: dict[int, Result] = {}
        pauses = backoff(*_POLL_INTERVAL)
        while True:
            began = self.clock()
            ended = await self._ended_ids(batch)
            listing = self.clock() - began
            before = len(results)

            async def read(row: Row, ended: set[str] = ended) -> None:
                fingerprint = layout.fingerprint(row.body)
                ids = (row.id, layout.other_body_id(row.id, fingerprint))
                for id in (id for id in ids if id in ended):
                    body = (await self.store.get(layout.result_key(id))).body
                    try:
                        result = Result.model_validate_json(body)
                    except ValueError:  # somebody else wrote it; else this batch would wait for ever
                        result = Result.damaged(id, layout.result_key(id))
                    if answers(result.fingerprint, fingerprint):
                        results[row.line] = result

            await gather_bounded([row for row in rows if row.line not in results], _IN_FLIGHT, read)
            if len(results) == len(rows):
                return results
            if len(results) > before:
                pauses = backoff(*_POLL_INTERVAL)
            await asyncio.sleep(max(next(pauses), _IDLE_FACTOR * listing))

    async def _sum_up(self, held: Held, began: float, rows: list[Row], results: dict[int, Result]) -> Result:
        """Write the summary files of a batch whose rows have all ended, and make its result."""
        batch, folder = held.claim.id, layout.result_folder(held.claim.id)
        ended = [results[row.line].status for row in rows]
        counts = BatchCounts(total=len(rows), **{s: ended.count(s) for s in set(ended)})
        good = [row for row in rows if results[row.line].images]
        bad = [row for row in rows if not results[row.line].images]
        items = await self._items(batch, rows, results)
        has_sheet = any(item.thumbnail for item in items)
        files = {
            "results.jsonl": (_lines(good, results), "application/jsonl"),
            "errors.jsonl": (_lines(bad, results), "application/jsonl"),
            "gallery.html": (await asyncio.to_thread(gallery.page, batch, items, counts=counts), "text/html"),
        }
        if has_sheet:
            sheet = await asyncio.to_thread(gallery.contact_sheet, items)
            files["contact-sheet.png"] = (sheet, "image/png")
        summary = BatchResult(
            counts=counts,
            results=folder + "results.jsonl",
            errors=folder + "errors.jsonl",
            gallery=folder + "gallery.html",
            contact_sheet=folder + "contact-sheet.png" if has_sheet else "",
        )
        files["batch.json"] = (summary.model_dump_json(indent=2).encode() + b"\n", "application/json")
        for name, (body, content_type) in files.items():  # batch.json last, as it names the others
            await self.store.create(folder + name, body, content_type=content_type)
        if counts.succeeded == counts.total:
            return self._result(held, began, "succeeded", None, summary)
        where = "errors.jsonl says why" if bad else "results.jsonl says why"
        where += ", and results.jsonl for rows with some images" if bad and counts.partial else ""
        text = f"{counts.total - counts.succeeded} of {counts.total} rows did not succeed; {where}"
        failure = Failure(code="some_rows_failed", message=text)
        return self._result(held, began, "partial" if good else "failed", failure, summary)

    async def _items(
        self, batch: str, rows: list[Row], results: dict[int, Result]
    ) -> list[gallery.GalleryItem]:
        """The items of the gallery: one for each image, and one for each row without any."""
        items: list[gallery.GalleryItem] = []
        for row in rows:
            result = results[row.line]
            name = row.custom_id or row.id.rsplit("/", 1)[-1]
            prompt = str(result.parameters.get("prompt") or "")
            common: dict[str, Any] = {
                "id": name,
                "prompt": prompt,
                "status": result.status,
                "parameters": result.parameters,
                "failure": result.failure.message if result.failure else None,
            }
            if not result.images:
                items.append(gallery.GalleryItem(**common))
            for image in result.images:
                small = await self._thumbnail(image.key) if len(items) < _SHOWN else None
                href = image.key.removeprefix(layout.result_folder(batch))
                items.append(gallery.GalleryItem(**common, seed=image.seed, image_href=href, thumbnail=small))
        return items

    async def _thumbnail(self, key: str) -> bytes | None:
        try:
            body = (await self.store.get(key)).body
        except NotFound:
            return None  # it was removed; the page works without it
        return await asyncio.to_thread(gallery.thumbnail, body)

    def _result(
        self,
        held: Held,
        began: float,
        status: Status,
        failure: Failure | None,
        summary: BatchResult | None = None,
    ) -> Result:
        timings = Timings(total=round(self.clock() - began, 4))
        return held.claim.ended(
            status, failure, worker=self.session, task="batch", timings=timings, batch=summary
        )


def _lines(rows: list[Row], results: dict[int, Result]) -> bytes:
    """One JSON document for each row, like OpenAI's batch output: match rows by `custom_id`, not by order."""
    return b"".join(_line(row, results[row.line]) for row in rows)


def _in_the_file(failure: Failure, line: int) -> str:
    """A failure's message with the line number of the batch's file; a row's own JSON has a single line."""
    return failure.message.replace(f"line {failure.line}, column", f"line {line}, column")


def _line(row: Row, result: Result) -> bytes:
    error: dict[str, Any] | None = None
    if result.failure is not None:
        error = {
            "code": result.failure.code,
            "message": _in_the_file(result.failure, row.line),
            "field": result.failure.field,
        }
        error |= {"line": row.line}
    elif not result.images:
        error = {"code": result.status, "message": f"the request was {result.status}", "line": row.line}
    body = {"status": result.status, "images": [image.model_dump() for image in result.images]}
    line = {
        "id": result.id,
        "custom_id": row.custom_id,
        "response": {"status_code": 200, "request_id": result.id, "body": body} if result.images else None,
        "error": error,
    }
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"
