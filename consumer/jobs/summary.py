"""The summary of a batch whose rows have all ended: its files of lines, its gallery, its contact sheet, its counts.

It is written in passes over the rows' facts, so no more than a page of pictures is in memory at a time. Only
`results.jsonl` and `errors.jsonl` are whole in memory while they are stored: some 400 bytes a row.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any

from consumer.jobs import gallery
from consumer.jobs.row_spool import telling_of_the_disk
from infra.gather import gather_bounded
from infra.stores.store import InvalidKey
from schemas import layout
from schemas.errors import NotFound
from schemas.result import BatchCounts, BatchResult, Failure, Result, Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from consumer.jobs.batches import OpenRow
    from consumer.jobs.row_spool import RowSpool
    from infra.stores.store import Store

PER_PAGE = 200  # pictures, or rows without any, on a page of the gallery
_EMBEDDED = 600  # pictures, the first ones, that the gallery and the contact sheet have as thumbnails
_IN_FLIGHT = 16  # pictures read at a time
_IN_MEMORY = 1 << 20  # bytes of a file of lines that is made in memory


def facts_of(row: OpenRow, result: Result) -> dict[str, Any]:
    """What the summary needs of a row's result, as JSON."""
    return {
        "status": result.status,
        "line": _line(row, result),
        "images": [[image.key, image.seed] for image in result.images],
        "item": {
            "id": row.custom_id or row.id.rsplit("/", 1)[-1],
            "prompt": str(result.parameters.get("prompt") or ""),
            "status": result.status,
            "parameters": result.parameters,
            "failure": result.failure.message if result.failure else None,
        },
    }


def _outcome(counts: BatchCounts, good: int) -> tuple[Status, Failure | None]:
    """How a batch has ended, of which `good` rows have pictures."""
    if counts.succeeded == counts.total:
        return "succeeded", None
    bad = good < counts.total
    where = "errors.jsonl says why" if bad else "results.jsonl says why"
    where += ", and results.jsonl for rows with some images" if bad and counts.partial else ""
    text = f"{counts.total - counts.succeeded} of {counts.total} rows did not succeed; {where}"
    return "partial" if good else "failed", Failure(code="some_rows_failed", message=text)


async def write(
    store: Store, batch: str, lines: Sequence[int], spool: RowSpool
) -> tuple[Status, Failure | None, BatchResult]:
    """Create the summary files of a batch. Each is created once, so a repetition does no harm.

    Args:
        lines: the rows' line numbers, in the order of the file; the spool has them all.

    Returns:
        How the batch has ended, why if not every row succeeded, and the keys of the files.
    """
    folder = layout.result_folder(batch)
    with SpooledTemporaryFile(_IN_MEMORY) as good, SpooledTemporaryFile(_IN_MEMORY) as bad:
        totals = await asyncio.to_thread(_count, lines, spool, good, bad)
        for name, file in (("results.jsonl", good), ("errors.jsonl", bad)):
            file.seek(0)
            body = await asyncio.to_thread(file.read)
            await store.create(folder + name, body, content_type="application/jsonl")
            del body
    pages = -(-totals.items // PER_PAGE) or 1
    items = _items(batch, lines, spool)
    on_sheet: list[gallery.GalleryItem] = []
    for number in range(1, pages + 1):
        shown = await asyncio.to_thread(lambda: [*islice(items, PER_PAGE)])
        if (number - 1) * PER_PAGE < _EMBEDDED:
            shown = await gather_bounded(shown, _IN_FLIGHT, lambda item: _with_thumbnail(store, folder, item))
            on_sheet += [gallery.for_sheet(item) for item in shown if item.thumbnail]
        place = gallery.Place(number, pages, totals.pictures)
        page = await asyncio.to_thread(gallery.page, batch, shown, counts=totals.counts, place=place)
        await store.create(folder + gallery.page_name(number), page, content_type="text/html")
    if on_sheet:
        sheet = await asyncio.to_thread(gallery.contact_sheet, on_sheet)
        await store.create(folder + "contact-sheet.png", sheet, content_type="image/png")
    result = BatchResult(
        counts=totals.counts,
        results=folder + "results.jsonl",
        errors=folder + "errors.jsonl",
        gallery=folder + gallery.page_name(1),
        gallery_pages=pages,
        contact_sheet=folder + "contact-sheet.png" if on_sheet else "",
    )
    body = result.model_dump_json(indent=2).encode() + b"\n"
    await store.create(
        folder + "batch.json", body, content_type="application/json"
    )  # last: it names the others
    return *_outcome(totals.counts, totals.good), result


@dataclass
class _Totals:
    """What one pass over all rows counts."""

    counts: BatchCounts
    good: int  # rows with pictures
    pictures: int
    items: int  # of the gallery


def _count(lines: Sequence[int], spool: RowSpool, good: IO[bytes], bad: IO[bytes]) -> _Totals:
    """Write each row's line into one of two files, and count."""
    ended: Counter[str] = Counter()
    rows_with_pictures = pictures = items = 0
    for line in lines:
        facts = spool[line]
        ended[facts["status"]] += 1
        rows_with_pictures += bool(facts["images"])
        pictures += len(facts["images"])
        items += len(facts["images"]) or 1
        file = good if facts["images"] else bad
        with telling_of_the_disk():
            file.write(json.dumps(facts["line"], ensure_ascii=False).encode() + b"\n")
    counts = BatchCounts(total=len(lines), **ended)
    return _Totals(counts, rows_with_pictures, pictures, items)


def _items(batch: str, lines: Sequence[int], spool: RowSpool) -> Iterator[gallery.GalleryItem]:
    """The items of the gallery: one for each image, and one for each row without any."""
    for line in lines:
        facts = spool[line]
        if not facts["images"]:
            yield gallery.GalleryItem(**facts["item"])
        for key, seed in facts["images"]:
            href = key.removeprefix(layout.result_folder(batch))
            yield gallery.GalleryItem(**facts["item"], seed=seed, image_href=href)


async def _with_thumbnail(store: Store, folder: str, item: gallery.GalleryItem) -> gallery.GalleryItem:
    if item.image_href is None:
        return item
    try:
        body = (await store.get(folder + item.image_href)).body
        return replace(item, thumbnail=await asyncio.to_thread(gallery.thumbnail, body))
    except (NotFound, InvalidKey, *gallery.UNREADABLE):
        return item  # it was removed, or somebody else wrote it; the page works without it


def _line(row: OpenRow, result: Result) -> dict[str, Any]:
    """A row's line, like OpenAI's batch output: match rows by `custom_id`, not by order."""
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
    return {
        "id": result.id,
        "custom_id": row.custom_id,
        "response": {"status_code": 200, "request_id": result.id, "body": body} if result.images else None,
        "error": error,
    }


def _in_the_file(failure: Failure, line: int) -> str:
    """A failure's message with the line number of the batch's file; a row's own JSON has a single line."""
    return failure.message.replace(f"line {failure.line}, column", f"line {line}, column")
