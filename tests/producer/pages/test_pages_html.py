"""What holds for every page: sizes, colours, no JavaScript, caching, and who sees what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from producer.web.api_keys import new_key, read_keys
from producer.web.pages import gallery, routes
from schemas.result import Frozen, Result
from tests.producer.browser import QUICK, expect, finished
from tests.producer.facade import facade

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def test_every_page_fits_a_phone_and_has_a_light_and_a_dark_face(page: Page, address: str):
    """360 pixels wide without scrolling sideways, even with a very long word; the colours follow the scheme."""
    id = finished(address, QUICK | {"prompt": "w" * 300})
    httpx.post(f"{address}/batches?id=phone", content=json.dumps(QUICK)).raise_for_status()
    page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/", f"/pictures/{id}", "/b", "/b/phone", "/docs"):
        backgrounds = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
            chips = page.locator(".status").evaluate_all("all => all.map((chip) => chip.offsetHeight)")
            assert max(chips, default=0) < 30, "a status is broken over several lines"
            backgrounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        light, dark = (
            sum(map(int, background.removeprefix("rgb(")[:-1].split(", "))) for background in backgrounds
        )
        assert light > 600 > 150 > dark


def test_the_documentation_is_drawn_from_this_server_alone_and_its_batch_can_be_sent(page: Page):
    """Swagger UI: the example of `POST /batches` is queued as it stands."""
    page.goto("/docs#/Batches/queue_batch")
    call = page.locator("#operations-Batches-queue_batch")
    call.get_by_role("button", name="Try it out").click()
    with page.expect_response("**/batches") as answer:
        call.get_by_role("button", name="Execute").click()
    assert answer.value.status == 202, answer.value.text()


def test_pages_are_sent_compressed_and_pictures_as_they_are(address: str):
    """Where the browser takes gzip."""
    id = finished(address, QUICK | {"prompt": "sent compressed"})
    for path in ("/live?now=1", f"/pictures/{id}", "/static/style.css", "/openapi.json"):
        answer = httpx.get(address + path, headers={"Accept-Encoding": "gzip"})
        assert answer.headers.get("content-encoding") == "gzip", path
        assert answer.text
    plain = httpx.get(f"{address}/jobs/{id}/images/0", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert "content-encoding" not in httpx.get(f"{address}/b", headers={"Accept-Encoding": ""}).headers


def test_the_doctors_own_requests_are_not_in_the_gallery(address: str):
    """Its pictures have pages, for who wants to look."""
    id = finished(address, QUICK | {"id": "a-canary", "prompt": "not art", "metadata": {"canary": True}})
    kept = finished(address, QUICK | {"prompt": "art", "metadata": {"canary": True}})
    text = httpx.get(f"{address}/live?now=1").text
    assert f"/pictures/{kept}" in text
    assert f"/pictures/{id}" not in text
    assert "not art" in httpx.get(f"{address}/pictures/{id}").text


def test_without_javascript_everything_can_be_looked_at(browser: Browser, address: str):
    """The gallery, a picture with its recipe, and the batches are plain HTML."""
    id = finished(address, QUICK | {"prompt": "plain html"})
    context = browser.new_context(base_url=address, java_script_enabled=False)
    page = context.new_page()
    for _ in range(50):  # what the first page lists is up to a second old
        page.goto("/")
        if page.locator(f"a[href='/pictures/{id}']").count():
            break
        page.wait_for_timeout(200)
    page.locator(f"a[href='/pictures/{id}']").click()
    expect(page.locator("h1")).to_have_text("plain html")
    expect(page.get_by_role("row", name="Steps")).to_contain_text("2")
    expect(page.get_by_role("link", name="Download manifest")).to_be_visible()
    page.goto("/b")
    expect(page.get_by_role("heading", name="Batches")).to_be_visible()
    context.close()


def test_what_has_not_changed_is_not_sent_again(address: str):
    """A page that fetches itself every second is sent again only when it has changed."""
    first = httpx.get(f"{address}/b")
    again = httpx.get(f"{address}/b", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    lost = httpx.get(f"{address}/pictures/nobody")
    assert lost.status_code == 404
    assert "text/html" in lost.headers["content-type"]


def test_earlier_pictures_have_pages_of_their_own(address: str):
    """What is older than a given picture, without the form."""
    older, newer = (finished(address, QUICK | {"prompt": f"page {n}"}) for n in range(2))
    text = httpx.get(f"{address}/", params={"before": newer}).text
    assert f"/pictures/{older}" in text
    assert f"/pictures/{newer}" not in text
    assert "<form" not in text


def test_the_end_of_the_gallery_says_what_it_leaves_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Older results are in the store, and not on the page."""
    for module in (gallery, routes):
        monkeypatch.setattr(module, "LATEST", 2)
    for n in range(3):
        (folder := tmp_path / "results" / f"r{n}").mkdir(parents=True)
        written = Result.ended(f"r{n}", "canceled", None, request=Frozen.of(b"{}"), fingerprint="")
        (folder / "result.json").write_bytes(written.to_json())
    with facade(tmp_path) as own:
        assert "These are the newest 2 results." in httpx.get(f"{own}/").text
        (tmp_path / "results" / "r0" / "result.json").unlink()
        assert "These are the newest" not in httpx.get(f"{own}/live?now=1").text


def test_a_caller_with_a_prefix_sees_its_own_pictures_only(store: Path, address: str):
    """On every page: others' are not found."""
    finished(address, QUICK | {"id": "not-for-bob", "prompt": "not for bob"})
    key, line = new_key("bob", prefix="bob")
    with facade(store, keys=read_keys(line)) as own:
        head = {"Authorization": f"Bearer {key}"}
        mine = httpx.post(
            f"{own}/generate/", json=QUICK | {"prompt": "for bob"}, headers=head, timeout=240
        ).json()
        pages = [httpx.get(own + path, headers=head).text for path in ("/", "/live?now=1", "/b")]
        assert "for bob" in pages[0]
        assert not any("not for bob" in page for page in pages)
        assert httpx.get(f"{own}/pictures/{mine['id']}", headers=head).status_code == 200
        for path in ("/pictures/", "/b/", "/recipe/"):
            assert httpx.get(f"{own}{path}not-for-bob", headers=head).status_code == 404
