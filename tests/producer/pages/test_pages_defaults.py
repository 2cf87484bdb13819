"""The form shows what the chosen model draws with, and leaves open what its user did."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.producer.browser import clean, expect
from tests.producer.facade import facade, ready, worker

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page before a worker that has a model of its own beside the bundled one."""
    place, mine = tmp_path_factory.mktemp("store"), tmp_path_factory.mktemp("mine")
    (mine / "model_index.json").write_text("{}")
    options = ("--models", f"mine={mine},steps=9,cfg=0,size=64x96,multiple=32", "--model", "doodle")
    with worker(place, *options), facade(place) as address:
        ready(address)
        yield from clean(browser, address)


def test_another_model_has_other_defaults_and_a_typed_number_stays(page: Page):
    """Only the typed number is sent."""
    page.goto("/")
    steps, guidance = page.locator("[name=steps]"), page.locator("[name=cfg_scale]")
    expect(steps).to_have_attribute("placeholder", "20")
    expect(guidance).to_have_attribute("placeholder", "4")
    guidance.fill("7")
    page.locator("#more summary").click()
    page.locator("[name=model]").select_option("mine")
    expect(steps).to_have_attribute("placeholder", "9")
    expect(guidance).to_have_attribute("placeholder", "0")
    expect(page.locator("[name=height]")).to_have_attribute("placeholder", "96")
    expect(page.locator("[name=width]")).to_have_attribute("step", "32")
    expect(page.locator("[name=scheduler]")).to_have_attribute("placeholder", "DPM++ 2M")
    page.get_by_label("Prompt", exact=True).fill("sent by the form")
    with page.expect_request(lambda one: one.url.endswith("/jobs") and one.method == "POST") as sent:
        page.locator("#draw").click()
    body = json.loads(sent.value.post_data or "{}")
    assert body == {"prompt": "sent by the form", "model": "mine", "cfg_scale": 7, "number_of_images": 1}
    expect(page.locator("#gallery .item").filter(has_text="sent by the form")).to_be_visible()
    page.reload()
    expect(page.locator("[name=model]")).to_have_value("mine")
    expect(guidance).to_have_value("7")
    expect(steps).to_have_value("")
    expect(steps).to_have_attribute("placeholder", "9")
