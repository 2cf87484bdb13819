"""The form: prompts, pictures, masks, and recipes that fill it."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING

import httpx
from PIL import Image

from schemas.manifest import validate_manifest
from tests.producer.browser import QUICK, draw, drop, expect, finished, item, png

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_a_dropped_picture_and_a_painted_mask_become_an_inpainting(page: Page, address: str):
    """The manifest holds the file's own bytes, and a mask that is white where the mouse went."""
    page.goto("/")
    drop(page, png())
    mask = page.locator("#mask")
    expect(mask).to_be_visible()
    expect(page.get_by_role("button", name="Redraw", exact=True)).to_be_visible()
    box = mask.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.5)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    expect(page.get_by_role("button", name="Repaint", exact=True)).to_be_visible()
    draw(page, "repainted in the middle", steps=2)
    picture = item(page, "repainted in the middle")
    expect(picture).to_be_visible()
    path = picture.locator("a").get_attribute("href") or ""
    manifest = httpx.get(f"{address}{path.replace('/pictures/', '/jobs/')}/request").json()
    assert validate_manifest(manifest).task == "inpainting"
    assert base64.b64decode(manifest["image"].partition(",")[2]) == png()
    white = Image.open(io.BytesIO(base64.b64decode(manifest["mask_image"].partition(",")[2]))).convert("L")
    assert white.size == (64, 48)
    assert [white.getpixel(at) for at in ((17, 24), (24, 24), (31, 24))] == [255, 255, 255]
    assert [white.getpixel(at) for at in ((60, 24), (24, 4), (2, 2))] == [0, 0, 0]


def test_a_mask_is_painted_erased_and_undone_by_keyboard(page: Page):
    """The arrow keys move the brush, the space bar paints, and the button's label follows."""
    page.goto("/")
    drop(page, png())
    button = page.locator("#draw")
    expect(button).to_have_text("Redraw")  # the picture is there, and can be painted on
    page.locator("#mask").focus()
    page.keyboard.down(" ")
    page.keyboard.press("ArrowRight")
    page.keyboard.up(" ")
    expect(button).to_have_text("Repaint")
    page.get_by_role("button", name="Erase").click()
    page.locator("#brush").fill("50")
    page.locator("#mask").focus()
    page.keyboard.press(" ")
    expect(button).to_have_text("Redraw")
    page.get_by_role("button", name="Undo").click()
    expect(button).to_have_text("Repaint")
    page.get_by_role("button", name="Clear").click()
    expect(button).to_have_text("Redraw")
    page.get_by_role("button", name="Remove the picture").click()
    expect(button).to_have_text("Draw")


def test_a_refused_request_is_told_beside_the_form(page: Page):
    """With the server's message, and the field marked and focused."""
    page.goto("/")
    draw(page, "too large a seed", seed=9999999999999999999)
    expect(page.get_by_role("alert")).to_contain_text("seed is 9999999999999999999")
    expect(page.locator("[name=seed]")).to_have_attribute("aria-invalid", "true")
    assert page.evaluate("document.activeElement.name") == "seed"


def test_a_recipe_fills_the_form_and_draws_again(page: Page, address: str):
    """With its picture and its mask, and a seed of more digits than JavaScript's numbers hold."""
    picture = base64.b64encode(png()).decode()
    out = io.BytesIO()
    Image.new("L", (64, 48), 255).save(out, "PNG")
    mask = base64.b64encode(out.getvalue()).decode()
    seed = 2**63 - 1
    id = finished(
        address, {"prompt": "once more", "steps": 2, "seed": seed, "image": picture, "mask_image": mask}
    )
    page.goto(f"/pictures/{id}")
    page.get_by_role("link", name="Use in the form").click()
    expect(page.locator("#draw")).to_have_text("Repaint")
    assert page.locator("[name=seed]").input_value() == str(seed)
    assert page.locator("[name=prompt]").input_value() == "once more"
    page.goto(f"/pictures/{id}")
    page.get_by_role("link", name="Use as input").click()
    expect(page.locator("#draw")).to_have_text("Redraw")
    page.goto(f"/pictures/{id}")
    page.get_by_role("button", name="Draw again").click()
    page.wait_for_url(lambda url: id not in url)
    expect(page.locator(".large img")).to_have_attribute("alt", "once more")


def test_what_the_form_has_no_input_for_stays_and_is_named(page: Page, address: str):
    """Without a word it would be lost, and another picture drawn; it can be left out."""
    id = finished(address, QUICK | {"prompt": "skips", "clip_skip": 2})
    page.goto(f"/pictures/{id}")
    page.get_by_role("link", name="Use in the form").click()
    note = page.get_by_text("Also as in the recipe: clip_skip.")
    expect(note).to_be_visible()
    page.reload()
    expect(note).to_be_visible()
    draw(page, "skips again", steps=2)
    picture = item(page, "skips again")
    expect(picture).to_be_visible()
    path = picture.locator("a").get_attribute("href") or ""
    asked = httpx.get(f"{address}{path.replace('/pictures/', '/jobs/')}/request").json()
    assert asked["clip_skip"] == 2
    page.get_by_role("button", name="Leave out").click()
    expect(note).to_be_hidden()


def test_the_form_stays_over_a_reload_and_a_look_at_a_picture(page: Page, address: str):
    """Prompt, settings, picture and mask; a recipe's link replaces them."""
    finished(address, QUICK | {"prompt": "to be looked at"})
    page.goto("/")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("half a thought")
    for name, value in {"negative_prompt": "blue", "steps": "12", "seed": "9007199254740993"}.items():
        page.locator(f"[name={name}]").fill(value)
    page.locator("#more summary").click()
    page.locator("[name=scheduler]").fill("DDIM")
    drop(page, png())
    expect(page.locator("#draw")).to_have_text("Redraw")  # the picture is there, and can be painted on
    page.locator("#mask").focus()
    page.keyboard.press(" ")
    expect(page.locator("#draw")).to_have_text("Repaint")
    page.locator("[name=strength]").fill("0.6")
    page.reload()
    expect(page.locator("#draw")).to_have_text("Repaint")
    item(page, "to be looked at").locator("a").click()
    expect(page.locator("h1")).to_have_text("to be looked at")
    page.go_back()
    expect(page.locator("#draw")).to_have_text("Repaint")
    expect(prompt).to_have_value("half a thought")
    wanted = {"negative_prompt": "blue", "steps": "12", "seed": "9007199254740993", "scheduler": "DDIM"}
    for name, value in (wanted | {"strength": "0.6"}).items():
        expect(page.locator(f"[name={name}]")).to_have_value(value)
    item(page, "to be looked at").locator("a").click()
    page.get_by_role("link", name="Use in the form").click()
    expect(prompt).to_have_value("to be looked at")
    expect(page.locator("#draw")).to_have_text("Draw")


def test_a_recipe_loses_nothing_that_the_form_has_no_inputs_for(page: Page, address: str):
    """A second pass and the pictures behind the first one are sent again; they can be left out."""
    page.goto("/")
    both = [base64.b64encode(png()).decode()] * 2
    manifest = {"prompt": "as before", "image": both, "upscale": {"scale": 2.0}, "refiner": {"model": "x"}}
    file = {"name": "a.json", "mimeType": "application/json", "buffer": json.dumps(manifest).encode()}
    page.locator("#file").set_input_files([file])  # type: ignore[list-item]
    expect(page.locator("#carried-names")).to_have_text("upscale, refiner, image")
    with page.expect_request("**/jobs") as sent:
        page.locator("#draw").click()
    body = json.loads(sent.value.post_data or "")
    assert {name: body[name] for name in ("upscale", "refiner")} == {
        name: manifest[name] for name in ("upscale", "refiner")
    }
    assert [base64.b64decode(one.partition(",")[2]) for one in body["image"][:1]] == [png()]
    assert body["image"][1:] == both[1:]
    page.get_by_role("button", name="Leave out").click()
    expect(page.locator("#carried")).to_be_hidden()
