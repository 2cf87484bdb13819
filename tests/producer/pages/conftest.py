"""The pages in a real browser, in front of a real worker: what people see and do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.producer.facade import facade, ready, worker

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SLOW = json.dumps({"seconds_per_step": 0.05})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a worker whose steps can be watched."""
    place = tmp_path_factory.mktemp("pages") / "store"
    with worker(place, "--null", SLOW):
        yield place


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    """A facade over that directory."""
    with facade(store) as listening:
        ready(listening)
        yield listening


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    from tests.producer.browser import CHROMIUM, sync_api

    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page that must stay clean, see `tests.producer.browser`."""
    from tests.producer.browser import clean

    yield from clean(browser, address)
