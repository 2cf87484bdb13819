"""The first page: the queue and the gallery follow the store without a reload."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from producer.web.api_keys import new_key, read_keys
from tests.producer.browser import HOSTILE, QUICK, clean, draw, expect, item
from tests.producer.facade import facade

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def test_a_picture_appears_without_a_reload_after_its_steps_were_seen_to_advance(page: Page):
    """From the prompt to the picture, by keyboard alone, on one and the same page."""
    page.goto("/")
    page.evaluate("window.same = true")
    draw(page, "a slow red circle", steps=60, number_of_images=2)
    meter = page.locator("#queue li").filter(has_text="a slow red circle").locator("progress[value]")
    expect(meter).to_be_visible()
    seen = set()
    end = time.monotonic() + 120
    while len(seen) < 3 and time.monotonic() < end:
        seen.add(page.evaluate("document.querySelector('#queue progress[value]')?.value ?? 0"))
    assert len(seen) >= 3
    pictures = page.locator("#gallery img[alt='a slow red circle']")
    expect(pictures).to_have_count(2)
    expect(page.locator("#announcer")).to_contain_text("Finished: a slow red circle")
    assert pictures.first.evaluate("async (img) => (await img.decode(), img.naturalWidth)") > 0
    expect(page.locator("#queue")).to_be_hidden()
    assert page.evaluate("window.same")


def test_what_others_drop_appears_too(page: Page, store: Path):
    """The gallery shows the store, not this page's own requests."""
    page.goto("/")
    (store / "requests" / "from-elsewhere.json").write_text(json.dumps(QUICK | {"prompt": "dropped by hand"}))
    (store / "requests" / "broken.json").write_text('{"prompt": "told why", "stepz": 3}')
    expect(item(page, "dropped by hand")).to_be_visible()
    expect(item(page, "told why")).to_contain_text("did you mean 'steps'?")


def test_a_request_is_cancelled_by_keyboard(page: Page):
    """Tab to its button, Enter; focus is not lost, and the outcome is announced."""
    page.goto("/")
    said = page.evaluate_handle(
        """() => {
          const texts = [];
          const box = document.querySelector("#announcer");
          new MutationObserver(() => texts.push(box.textContent)).observe(box, { childList: true });
          return texts;
        }"""
    )
    draw(page, "never to be seen", steps=150, number_of_images=4)
    expect(page.get_by_role("button", name="Cancel: never to be seen")).to_be_visible()
    expect(page).to_have_title("(1) Dreamdrop")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("'cancel' in document.activeElement.dataset"):
            break
    page.keyboard.press("Enter")
    expect(item(page, "never to be seen")).to_contain_text("Cancelled")
    expect(page).to_have_title("Dreamdrop")
    texts = said.json_value()
    assert "Cancelled" in texts
    assert "Cancelled: never to be seen" in texts
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_a_hostile_prompt_is_text_everywhere(page: Page, address: str):
    """In the queue, the gallery, a picture's page, its recipe, and a batch; nothing of it runs."""
    page.goto("/")
    draw(page, HOSTILE, steps=20)
    expect(page.locator("#queue .prompt").filter(has_text="onerror")).to_have_text(HOSTILE)
    expect(item(page, "onerror").locator(".prompt")).to_have_text(HOSTILE)
    item(page, "onerror").locator("a").click()
    expect(page.locator("h1")).to_have_text(HOSTILE)
    expect(page.locator("#recipe")).to_contain_text("{{7*7}}")
    rows = [{"prompt": HOSTILE, "steps": 2}, {"prompt": "x", "model": HOSTILE[:99]}]
    answer = httpx.post(f"{address}/batches?id=hostile", content="\n".join(map(json.dumps, rows)))
    answer.raise_for_status()
    page.goto("/b/hostile")
    expect(page.locator(".fact-prompt dd")).to_have_text(HOSTILE)
    expect(page.locator("#failed li")).to_contain_text("<script>")


def test_without_a_worker_it_is_said_and_requests_wait(browser: Browser, tmp_path: Path):
    """A note, and the request in the queue with its position."""
    with facade(tmp_path) as address:
        pages = clean(browser, address)
        page = next(pages)
        page.goto("/")
        expect(page.get_by_text("No worker is alive.")).to_be_visible()
        draw(page, "patient")
        expect(page.locator("#queue li").filter(has_text="patient")).to_contain_text("next in the queue")
        assert next(pages, None) is None


def test_with_keys_the_browser_asks_and_all_goes_on(browser: Browser, store: Path):
    """The browser sends the password with every fetch and every event stream."""
    key, line = new_key("alice")
    with facade(store, keys=read_keys(line)) as address:
        assert httpx.get(f"{address}/").headers["www-authenticate"].startswith("Basic")
        pages = clean(browser, address, http_credentials={"username": "any", "password": key})
        page = next(pages)
        page.goto("/")
        draw(page, "behind a key", steps=20)
        expect(item(page, "behind a key")).to_be_visible()
        assert next(pages, None) is None
