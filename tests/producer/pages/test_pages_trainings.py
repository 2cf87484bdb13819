"""The pages of trainings in a browser: watched, ended, canceled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.stores.open import open_store
from tests.producer.browser import clean, expect
from tests.producer.facade import facade
from tests.producer.training_store import FakeTrainer, every_state

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A directory with a training in each state, and no worker."""
    in_thread(every_state(tmp_path))
    return tmp_path


@pytest.fixture
def page(browser: Browser, store: Path) -> Iterator[Page]:
    """A clean page of a facade over it."""
    with facade(store) as address:
        yield from clean(browser, address)


def in_thread(work: Awaitable[None]) -> None:
    """Run it on a loop of its own: Playwright has one on this thread."""
    import threading

    thread = threading.Thread(target=lambda: asyncio.run(work))  # type: ignore[arg-type]
    thread.start()
    thread.join()


def trainer_does(store: Path, work: Callable[[FakeTrainer], Awaitable[None]]) -> None:
    """Let the trainer of `running` do something."""

    async def run() -> None:
        async with open_store(str(store)) as opened:
            await work(FakeTrainer(opened))

    in_thread(run())


def test_trainings_are_listed_and_the_list_moves(page: Page, store: Path):
    """From the navigation; with a bar, loss and time left; what ends leads to the model."""
    page.goto("/")
    page.get_by_role("link", name="Trainings").click()
    rows = {
        id: page.locator(f"#training-{id}") for id in ("running", "waiting", "done", "broken", "unwanted")
    }
    expect(rows["running"]).to_contain_text("training · step 40 of 400 · loss 0.1250 · about 1 h 30 min left")
    expect(rows["running"].get_by_role("progressbar")).to_have_attribute("value", "40")
    expect(rows["waiting"]).to_contain_text("next")
    expect(rows["done"]).to_contain_text("my-dog@2")
    expect(rows["broken"]).to_contain_text("base names 'nothing', which is no model here")
    expect(rows["unwanted"].locator(".status")).to_have_text("cancelled")
    expect(page).to_have_title("(2) Trainings · Dreamdrop")

    async def go_on(trainer: FakeTrainer) -> None:
        await trainer.report("running", 399, loss=0.0625, eta=None)

    trainer_does(store, go_on)
    expect(rows["running"]).to_contain_text("step 399 of 400 · loss 0.0625")
    expect(rows["running"].get_by_role("progressbar")).to_have_attribute("value", "399")


def test_one_training_is_watched_until_it_is_published(page: Page, store: Path):
    """Its pictures come by step; at the end there is the model's name and the report."""
    page.goto("/t/running")
    expect(page.locator("#about")).to_contain_text("step 40 of 400")
    pictures = page.locator("#validation img")
    expect(pictures).to_have_count(2)
    expect(page.locator("#validation thead")).to_contain_text("before")
    loaded = "all => all.every((one) => one.complete && one.naturalWidth === 64)"
    page.wait_for_function(f"({loaded})([...document.querySelectorAll('#validation img')])")

    async def end(trainer: FakeTrainer) -> None:
        await trainer.draw("running", 400)
        (held,) = await trainer.claims.sweep(1)
        await trainer.publish(held)

    trainer_does(store, end)
    expect(page.locator(".status")).to_have_text("finished")
    expect(pictures).to_have_count(3)
    expect(page.locator("#summary")).to_contain_text('"model": "my-dog@2"')
    expect(page.locator(".recipe")).to_contain_text("Rank")
    expect(page.get_by_role("row", name="Flip no")).to_be_visible()
    page.get_by_role("link", name="Report").click()
    expect(page.get_by_role("heading")).to_have_text("Report of my-dog")
    assert page.get_by_role("heading").evaluate("(h) => getComputedStyle(h).color") == "rgb(255, 0, 0)"


def test_a_training_is_canceled_from_its_page(page: Page, store: Path):
    """The button goes, and the page says so."""
    page.goto("/t/waiting")
    page.get_by_role("button", name="Cancel the training").click()
    expect(page.locator(".status")).to_have_text("cancelled")
    expect(page.get_by_role("button")).to_have_count(0)
    assert not (store / "trainings" / "waiting.json").exists()


def test_without_a_trainer_it_is_told(page: Page, store: Path):
    """On the list and on the training's page."""
    (store / "trainers" / "trainer-1").unlink()
    for path in ("/t", "/t/waiting"):
        page.goto(path)
        expect(page.locator(".note.warn")).to_contain_text("No trainer is alive.")


def test_the_pages_fit_a_phone(page: Page):
    """360 pixels wide without scrolling sideways, in both schemes."""
    page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/t", "/t/running", "/t/done", "/t/broken"):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
