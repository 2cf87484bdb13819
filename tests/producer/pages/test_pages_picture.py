"""The page of one picture: its recipe, and the way to its neighbours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx

from schemas.manifest import validate_manifest
from tests.producer.browser import QUICK, expect, finished, item

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_what_was_cancelled_is_no_fault_and_can_be_drawn_after_all(page: Page, address: str):
    """Its page shows no error and can draw it again, with the seed exact to the last digit."""
    httpx.put(f"{address}/jobs/oops", json=QUICK | {"prompt": "after all", "seed": 2**63 - 1, "steps": 150})
    httpx.delete(f"{address}/jobs/oops").raise_for_status()
    page.goto("/pictures/oops")
    expect(page.locator(".note.warn")).to_have_text("Cancelled.")
    with page.expect_request(lambda request: request.method == "POST") as sent:
        page.get_by_role("button", name="Draw again").click()
    assert json.loads(sent.value.post_data)["seed"] == 2**63 - 1
    page.wait_for_url(lambda url: "oops" not in url)


def test_a_recipe_is_copied_as_json_and_as_a_manifest(page: Page, address: str):
    """Both by keyboard; the manifest can be dropped, and has the random seed that was used."""
    id = finished(address, {"prompt": "a recipe", "steps": 2, "width": 64, "height": 64})
    page.goto(f"/pictures/{id}")
    page.get_by_role("button", name="Copy recipe").press("Enter")
    expect(page.locator("#announcer")).to_have_text("Copied")
    recipe = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert (recipe["prompt"], recipe["steps"]) == ("a recipe", 2)
    page.get_by_role("button", name="Copy manifest").click()
    expect(page.locator("#copy-manifest")).to_have_text("Copied")
    again = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert again["seed"] == recipe["seeds"][0]
    assert "scheduler" in again
    assert validate_manifest(again).prompt == "a recipe"


def test_arrow_keys_lead_to_the_neighbours(page: Page, address: str):
    """Right is older, left is newer, Escape leads back."""
    older, newer = (finished(address, QUICK | {"prompt": f"neighbour {n}"}) for n in range(2))
    page.goto(f"/pictures/{newer}")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(f"**/pictures/{older}")
    expect(page.locator("h1")).to_have_text("neighbour 0")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(f"**/pictures/{newer}")
    page.keyboard.press("Escape")
    page.wait_for_url("**/")


def test_what_cannot_succeed_as_it_stands_is_to_be_corrected(page: Page, address: str):
    """A failure of the request's own: the form first, not the same again; and the tile has the first sentence."""
    answer = httpx.post(f"{address}/jobs", json=QUICK | {"prompt": "misspelt", "scheduler": "Eulr"})
    answer.raise_for_status()
    page.goto("/")
    expect(item(page, "misspelt")).to_contain_text("Failed")
    expect(item(page, "misspelt").locator(".reason")).not_to_contain_text("DDIM")
    item(page, "misspelt").locator("a").click()
    expect(page.locator("#pictures")).to_contain_text("DDIM")
    expect(page.locator("#single .primary")).to_have_text("Correct it in the form")
