"""A batch of many rows in the facade and in `fetch`: pages of bounded size that lead to each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from consumer.jobs.batches import Batches
from infra.stores.directory.store import DirectoryStore
from producer import AsyncClient
from producer.web.pages import gallery
from schemas import layout
from schemas.limits import Limits
from tests.ended_batches import batch_of, end
from tests.producer.facade import facade

pytestmark = pytest.mark.anyio
ROWS = 2 * gallery.ROWS + 5
HTML = {"Accept": "text/html"}


async def finished(root: Path) -> None:
    """A batch that one worker finished."""
    async with DirectoryStore(root, fsync=False) as store:
        held = batch_of(ROWS)
        await end(store, held, range(ROWS - 1))
        await end(store, held, range(ROWS - 1, ROWS), "failed")
        result = await Batches(store, Limits(), lambda: 0.0, "s").run(held)
        await store.create(layout.result_key("b"), result.to_json())


def pictures(page: str) -> list[str]:
    return re.findall(r'alt="number of b/(row-\d+)"', page)


async def test_every_page_of_a_batch_can_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The grid and the gallery show each row once, in the order of the file, whatever its name."""
    await finished(tmp_path)
    with facade(tmp_path) as address:
        at, rows, numbers = f"{address}/b/b", list[str](), list[int]()
        while at:
            page = httpx.get(at, headers=HTML).text
            rows += pictures(page)
            numbers.append(len(pictures(page)))
            following = re.search(r'<a href="([^"]+)" rel="next"', page)
            at = urljoin(at, following[1]) if following else ""
        assert numbers == [gallery.ROWS, gallery.ROWS, 4]
        assert rows == [f"row-{i}" for i in range(ROWS - 1)]
        assert "it burnt" in page, "the last row failed"

        at, shown = f"{address}/batches/b/files/gallery", list[str]()
        while at:
            answer = httpx.get(at)
            assert (answer.status_code, "sandbox" in answer.headers["Content-Security-Policy"]) == (200, True)
            shown += re.findall(r'href="(row-\d+)/0\.png"', answer.text)
            following = re.search(r'<a href="(gallery-\d+\.html)">Next', answer.text)
            back = re.search(r'<a href="(gallery[^"]*)">← Previous', answer.text)
            assert back is None or httpx.get(urljoin(at, back[1])).status_code == 200
            at = urljoin(at, following[1]) if following else ""
        assert shown == rows
        for other in ("gallery-4.html", "gallery-0.html", "result.json", "x"):
            assert httpx.get(f"{address}/batches/b/files/{other}").status_code == 404


async def test_rows_far_apart_are_found_without_listing_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The names of a page's rows may lie anywhere among the keys: after a bounded listing the others are asked for."""
    await finished(tmp_path)
    monkeypatch.setattr(gallery, "LISTED", 50)
    listed = 0
    real = DirectoryStore.list

    async def counted(self: DirectoryStore, prefix: str, **options: Any) -> Any:
        nonlocal listed
        async for info in real(self, prefix, **options):
            listed += prefix == "results/b/"
            yield info

    monkeypatch.setattr(DirectoryStore, "list", counted)
    with facade(tmp_path) as address:
        page = httpx.get(f"{address}/b/b?page=2", headers=HTML).text
    assert pictures(page) == [f"row-{i}" for i in range(gallery.ROWS, 2 * gallery.ROWS)]
    assert listed <= 51


async def test_fetch_saves_every_page(tmp_path: Path):
    """A saved gallery can be read to its end."""
    await finished(tmp_path / "store")
    async with AsyncClient(tmp_path / "store") as client:
        await client.fetch("b", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "b").glob("*.html"))
    assert names == ["gallery-2.html", "gallery-3.html", "gallery.html"]
    assert json.loads((tmp_path / "out/b/results.jsonl").read_text().splitlines()[0])["custom_id"] == "row-0"
