"""A file of many requests: drop each row as a request of its own, wait, and sum up.

Rows have fixed names, so a crash in the middle of either half is repeated harmlessly.
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

_ABREAST = 16  # store calls in flight at a time
_LOOK = (0.1, 5.0)  # seconds between two looks for finished rows: shortest, longest
_SPARE = 9  # and so many times as long as a listing takes, which grows with the rows that are over
_SHOWN = 500  # pictures in a gallery page; more would make it too heavy to open


@dataclass
class Batches:
    """Fans batches out and rolls them up, for one worker."""

    store: Store
    limits: Limits
    clock: Callable[[], float]
    session: str

    async def run(self, held: Held) -> Result:
        """See a claimed batch through; the caller commits what this returns."""
        began, claim = self.clock(), held.claim
        try:
            rows = await asyncio.to_thread(split_rows, claim.id, claim.frozen.body(), self.limits)
        except Rejected as error:
            return self._result(held, began, "failed", Failure.of(error))
        over = await self._ids_over(claim.id)
        fresh = [row for row in rows if row.id not in over]
        await gather_bounded(
            fresh, _ABREAST, lambda row: self.store.create(layout.request_key(row.id), row.body)
        )
        log.info("batch dropped", extra={"id": claim.id, "rows": len(rows), "new": len(fresh)})
        results = await self._wait(claim.id, rows)
        return await self._sum_up(held, began, rows, results)

    async def _ids_over(self, batch: str) -> set[str]:
        """The rows that have a result."""
        folder = layout.result_folder(batch)
        return {
            id async for info in self.store.list(folder) if (id := layout.parse_result(info.key)) is not None
        }

    async def _wait(self, batch: str, rows: list[Row]) -> dict[int, Result]:
        """Every row's result, by line; as long as it takes."""
        found: dict[int, Result] = {}
        pauses = backoff(*_LOOK)
        while True:
            began = self.clock()
            over = await self._ids_over(batch)
            listing = self.clock() - began
            open_rows = [row for row in rows if row.line not in found]
            before = len(found)

            async def read(row: Row, over: set[str] = over) -> None:
                print_ = layout.fingerprint(row.body)
                for id in (row.id, layout.other_body_id(row.id, print_)):
                    if id in over:
                        result = Result.model_validate_json(
                            (await self.store.get(layout.result_key(id))).body
                        )
                        if answers(result.fingerprint, print_):
                            found[row.line] = result

            await gather_bounded(open_rows, _ABREAST, read)
            if len(found) == len(rows):
                return found
            if len(found) > before:
                pauses = backoff(*_LOOK)
            await asyncio.sleep(max(next(pauses), _SPARE * listing))

    async def _sum_up(self, held: Held, began: float, rows: list[Row], results: dict[int, Result]) -> Result:
        batch, folder = held.claim.id, layout.result_folder(held.claim.id)
        ended = [results[row.line].status for row in rows]
        counts = BatchCounts(total=len(rows), **{s: ended.count(s) for s in set(ended)})
        good = [row for row in rows if results[row.line].images]
        bad = [row for row in rows if not results[row.line].images]
        items = await self._items(batch, rows, results)
        thumbnails = [item.thumbnail for item in items if item.thumbnail]
        files = {
            "results.jsonl": (_lines(good, results), "application/jsonl"),
            "errors.jsonl": (_lines(bad, results), "application/jsonl"),
            "gallery.html": (await asyncio.to_thread(gallery.page, batch, items, counts=counts), "text/html"),
        }
        if thumbnails:
            sheet = await asyncio.to_thread(gallery.contact_sheet, thumbnails)
            files["contact-sheet.png"] = (sheet, "image/png")
        summary = BatchResult(
            counts=counts,
            results=folder + "results.jsonl",
            errors=folder + "errors.jsonl",
            gallery=folder + "gallery.html",
            contact_sheet=folder + "contact-sheet.png" if thumbnails else "",
        )
        files["batch.json"] = (summary.model_dump_json(indent=2).encode() + b"\n", "application/json")
        for name, (body, content_type) in files.items():
            await self.store.create(folder + name, body, content_type=content_type)
        failed = counts.total - counts.succeeded
        status: Status = "succeeded" if not failed else "partial" if good else "failed"
        failure = None
        if failed:
            where = "errors.jsonl says why" if bad else "results.jsonl says why"
            where += ", and results.jsonl of those with some images" if bad and counts.partial else ""
            text = f"{failed} of {counts.total} rows did not succeed; {where}"
            failure = Failure(code="some_rows_failed", message=text)
        return self._result(held, began, status, failure, summary)

    async def _items(
        self, batch: str, rows: list[Row], results: dict[int, Result]
    ) -> list[gallery.GalleryItem]:
        """What the gallery shows: each image, and each row that has none."""
        items: list[gallery.GalleryItem] = []
        for row in rows:
            result = results[row.line]
            name = row.custom_id or row.id.rsplit("/", 1)[-1]
            prompt = str(result.parameters.get("prompt") or "")
            common: dict[str, Any] = {"id": name, "prompt": prompt, "status": result.status}
            common["parameters"] = result.parameters
            why = result.failure.message if result.failure else None
            if not result.images:
                items.append(
                    gallery.GalleryItem(**common, seed=None, image_href=None, thumbnail=None, failure=why)
                )
            for image in result.images:
                small = await self._thumbnail(image.key) if len(items) < _SHOWN else None
                href = image.key.removeprefix(layout.result_folder(batch))
                items.append(
                    gallery.GalleryItem(
                        **common, seed=image.seed, image_href=href, thumbnail=small, failure=why
                    )
                )
        return items

    async def _thumbnail(self, key: str) -> bytes | None:
        try:
            body = (await self.store.get(key)).body
        except NotFound:
            return None  # somebody removed it; the page still opens
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
    """One JSON document a row, in the shape of OpenAI's batch output: match on `custom_id`, not on order."""
    return b"".join(_line(row, results[row.line]) for row in rows)


def _line(row: Row, result: Result) -> bytes:
    error: dict[str, Any] | None = None
    if result.failure is not None:
        error = {
            "code": result.failure.code,
            "message": result.failure.message,
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
