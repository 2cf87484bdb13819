"""What the tests of the pages share: a clean browser page, and what users do on it."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

expect = sync_api.expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

HOSTILE = '"><script>alert(1)</script><img src=x onerror="alert(1)">{{7*7}}'
QUICK = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 5}
WAIT = 120_000  # milliseconds in which a picture must come
expect.set_options(timeout=WAIT)


def clean(browser: Browser, address: str, **options: object) -> Iterator[Page]:
    """A page that must stay clean: no error, no violation of the policy, no request to another host."""
    faults: list[str] = []
    context = browser.new_context(
        base_url=address, permissions=["clipboard-read", "clipboard-write"], **options
    )
    context.set_default_timeout(WAIT)
    opened = context.new_page()

    def on_console(kind: str, text: str) -> None:
        if (
            kind == "error" and "status of 422" not in text
        ):  # the page shows a refusal; the console lists it too
            faults.append(text)

    opened.on("console", lambda message: on_console(message.type, message.text))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("dialog", lambda dialog: faults.append(dialog.message) or dialog.dismiss())
    opened.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or faults.append(r.url))
    yield opened
    context.close()
    assert not faults


def draw(page: Page, prompt: str, **fields: object) -> None:
    """Fill the form and send it with the keyboard."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    for name, value in fields.items():
        page.locator(f"[name={name}]").fill(str(value))
    page.keyboard.press("Control+Enter")


def item(page: Page, prompt: str) -> Locator:
    """A picture in the gallery."""
    return page.locator("#gallery .item").filter(has_text=prompt)


def finished(address: str, document: dict) -> str:
    """Have a request drawn; returns its id."""
    answer = httpx.post(f"{address}/generate/", json=document, timeout=240)
    answer.raise_for_status()
    return str(answer.json()["id"])


def png(size: tuple[int, int] = (64, 48)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (40, 80, 200)).save(out, "PNG")
    return out.getvalue()


def drop(page: Page, body: bytes, name: str = "picture.png", kind: str = "image/png") -> None:
    """Drop a file onto the page."""
    page.evaluate(
        """([text, name, type]) => {
          const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], name, { type }));
          const event = { dataTransfer, bubbles: true, cancelable: true };
          document.querySelector("#drop").dispatchEvent(new DragEvent("dragover", event));
          document.querySelector("#drop").dispatchEvent(new DragEvent("drop", event));
        }""",
        [base64.b64encode(body).decode(), name, kind],
    )
