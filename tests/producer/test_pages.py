"""The pages in a real browser, in front of a real worker: what people see and do."""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from PIL import Image

from producer.web.api_keys import new_key, read_keys
from schemas.manifest import validate_manifest
from tests.producer.facade import facade, ready, worker

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

expect = sync_api.expect
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")

HOSTILE = '"><script>alert(1)</script><img src=x onerror="alert(1)">{{7*7}}'
SLOW = json.dumps({"seconds_per_step": 0.05})
QUICK = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 5}
WAIT = 20_000  # milliseconds in which a picture must come
expect.set_options(timeout=WAIT)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a worker whose steps can be watched."""
    place = tmp_path_factory.mktemp("pages") / "store"
    with worker(place, "--null", SLOW):
        yield place


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    """A facade over that directory."""
    with facade(store) as found:
        ready(found)
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page that must stay clean: no error, no violation of the policy, no request to another host."""
    yield from clean(browser, address)


def clean(browser: Browser, address: str, **options: object) -> Iterator[Page]:
    faults: list[str] = []
    context = browser.new_context(
        base_url=address, permissions=["clipboard-read", "clipboard-write"], **options
    )
    context.set_default_timeout(WAIT)
    opened = context.new_page()

    def heard(kind: str, text: str) -> None:
        if kind == "error" and "status of 422" not in text:  # a refusal is shown to the user, and listed here
            faults.append(text)

    opened.on("console", lambda said: heard(said.type, said.text))
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


def tile(page: Page, prompt: str) -> Locator:
    return page.locator("#gallery .tile").filter(has_text=prompt)


def finished(address: str, document: dict) -> str:
    """Have a request drawn; its id."""
    answer = httpx.post(f"{address}/generate/", json=document, timeout=60)
    answer.raise_for_status()
    return str(answer.json()["id"])


def png(size: tuple[int, int] = (64, 48)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (40, 80, 200)).save(out, "PNG")
    return out.getvalue()


def drop(page: Page, body: bytes, name: str = "picture.png", kind: str = "image/png") -> None:
    """Let a file fall onto the page."""
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


def test_a_picture_appears_without_a_reload_after_its_steps_were_seen_to_advance(page: Page):
    """From the prompt to the picture, by keyboard alone, on one and the same page."""
    page.goto("/")
    page.evaluate("window.same = true")
    draw(page, "a slow red circle", steps=30, number_of_images=2)
    meter = page.locator("#queue li").filter(has_text="a slow red circle").locator("progress[value]")
    expect(meter).to_be_visible()
    seen = set()
    end = time.monotonic() + 20
    while len(seen) < 3 and time.monotonic() < end:
        seen.add(page.evaluate("document.querySelector('#queue progress[value]')?.value ?? 0"))
    assert len(seen) >= 3
    pictures = page.locator("#gallery img[alt='a slow red circle']")
    expect(pictures).to_have_count(2)
    expect(page.locator("#said")).to_contain_text("Finished: a slow red circle")
    assert pictures.first.evaluate("async (img) => (await img.decode(), img.naturalWidth)") > 0
    expect(page.locator("#queue")).to_be_hidden()
    assert page.evaluate("window.same")


def test_what_others_drop_appears_too(page: Page, store: Path):
    """The gallery shows the store, not this page's own requests."""
    page.goto("/")
    (store / "requests" / "from-elsewhere.json").write_text(json.dumps(QUICK | {"prompt": "dropped by hand"}))
    (store / "requests" / "broken.json").write_text('{"prompt": "told why", "stepz": 3}')
    expect(tile(page, "dropped by hand")).to_be_visible()
    expect(tile(page, "told why")).to_contain_text("did you mean 'steps'?")


def test_a_request_is_cancelled_by_keyboard(page: Page):
    """Tab to its button, Enter; focus is not lost, and the outcome is said."""
    page.goto("/")
    draw(page, "never to be seen", steps=150, number_of_images=4)
    expect(page.get_by_role("button", name="Cancel: never to be seen")).to_be_visible()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("'cancel' in document.activeElement.dataset"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_have_text("Cancelled")
    expect(tile(page, "never to be seen")).to_contain_text("Cancelled")
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_what_was_cancelled_is_no_fault_and_can_be_drawn_after_all(page: Page, address: str):
    """Its page said the same word twice, in red, and offered nothing to do; its seed is kept to the last digit."""
    httpx.put(f"{address}/jobs/oops", json=QUICK | {"prompt": "after all", "seed": 2**63 - 1, "steps": 150})
    httpx.delete(f"{address}/jobs/oops").raise_for_status()
    page.goto("/pictures/oops")
    expect(page.locator(".note.warn")).to_have_text("Cancelled.")
    with page.expect_request(lambda request: request.method == "POST") as sent:
        page.get_by_role("button", name="Draw again").click()
    assert json.loads(sent.value.post_data)["seed"] == 2**63 - 1
    page.wait_for_url(lambda url: "oops" not in url)


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
    found = tile(page, "repainted in the middle")
    expect(found).to_be_visible()
    path = found.locator("a").get_attribute("href") or ""
    asked = httpx.get(f"{address}{path.replace('/pictures/', '/jobs/')}/request").json()
    assert validate_manifest(asked).task == "inpainting"
    assert base64.b64decode(asked["image"].partition(",")[2]) == png()
    white = Image.open(io.BytesIO(base64.b64decode(asked["mask_image"].partition(",")[2]))).convert("L")
    assert white.size == (64, 48)
    assert [white.getpixel(at) for at in ((17, 24), (24, 24), (31, 24))] == [255, 255, 255]
    assert [white.getpixel(at) for at in ((60, 24), (24, 4), (2, 2))] == [0, 0, 0]


def test_a_mask_is_painted_erased_and_undone_by_keyboard(page: Page):
    """The brush moves by arrow keys and paints by the space bar; what the button says follows."""
    page.goto("/")
    drop(page, png())
    page.locator("#mask").focus()
    button = page.locator("#draw")
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
    """In the server's words, with the field marked and focused."""
    page.goto("/")
    draw(page, "too large a seed", seed=9999999999999999999)
    expect(page.get_by_role("alert")).to_contain_text("seed is 9999999999999999999")
    expect(page.locator("[name=seed]")).to_have_attribute("aria-invalid", "true")
    assert page.evaluate("document.activeElement.name") == "seed"


def test_a_hostile_prompt_is_text_everywhere(page: Page, address: str):
    """In the queue, the gallery, a picture's page, its recipe, and a batch; nothing of it runs."""
    page.goto("/")
    draw(page, HOSTILE, steps=20)
    expect(page.locator("#queue .prompt").filter(has_text="onerror")).to_have_text(HOSTILE)
    expect(tile(page, "onerror").locator(".prompt")).to_have_text(HOSTILE)
    tile(page, "onerror").locator("a").click()
    expect(page.locator("h1")).to_have_text(HOSTILE)
    expect(page.locator("#recipe")).to_contain_text("{{7*7}}")
    rows = [{"prompt": HOSTILE, "steps": 2}, {"prompt": "x", "model": HOSTILE[:99]}]
    answer = httpx.post(f"{address}/batches?id=hostile", content="\n".join(map(json.dumps, rows)))
    answer.raise_for_status()
    page.goto("/b/hostile")
    expect(page.locator(".fact-prompt dd")).to_have_text(HOSTILE)
    expect(page.locator("#failed li")).to_contain_text("<script>")


def test_a_batch_is_uploaded_watched_and_compared(page: Page, tmp_path: Path):
    """A file in, pictures as they come, then a grid with what differs under each."""
    rows = [QUICK | {"custom_id": f"row{n}", "cfg_scale": n, "steps": 10} for n in (1, 2, 10)]
    bad = {"custom_id": "bad", "prompt": "x", "model": "nothing"}
    file = tmp_path / "wall.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in [*rows, bad]))
    page.goto("/b")
    page.get_by_label("File").set_input_files(file)
    page.get_by_label("Name").fill("wall")
    page.get_by_role("button", name="Upload and draw").click()
    page.wait_for_url("**/b/wall")
    expect(page.locator(".status")).to_have_text("finished in part")
    expect(page.locator("#summary")).to_contain_text("3 finished · 1 failed")
    expect(page.locator("#failed li")).to_contain_text("no model named 'nothing'")
    assert page.locator("#grid .fact-cfg_scale dd").all_inner_texts() == ["1", "2", "10"]
    expect(page.locator("#grid .fact-seed").first).to_be_hidden()
    page.get_by_label("seed").check()
    expect(page.locator("#grid .fact-seed").first).to_be_visible()
    page.get_by_label("Columns").select_option("3")
    columns = page.locator("#grid").evaluate("(grid) => getComputedStyle(grid).gridTemplateColumns")
    assert len(columns.split()) == 3
    page.goto("/b")
    expect(page.get_by_role("row").filter(has_text="wall")).to_contain_text("4 of 4")


def test_a_batch_that_ends_stays_in_the_list(address: str):
    """For a moment it was neither among those that are drawn nor among those that are over."""
    row = json.dumps(QUICK | {"steps": 20})
    httpx.get(f"{address}/").raise_for_status()  # what is remembered of the queue ages from now on,
    httpx.post(f"{address}/batches?id=steady", content=row).raise_for_status()
    time.sleep(0.5)  # and what is remembered of the ended from here
    seen: list[bool] = []
    end = time.monotonic() + 60
    while "finished" not in (page := listed(address, "steady")):
        seen.append(bool(page))
        assert time.monotonic() < end
        time.sleep(0.05)
    assert sorted(seen) == seen, "it was in the list, and then it was not"


def listed(address: str, batch: str) -> str:
    """A batch's line in the list; "" if there is none."""
    return httpx.get(f"{address}/b").text.partition(f'id="batch-{batch}"')[2].partition("</tr>")[0]


def test_a_recipe_is_copied_as_json_and_as_a_manifest(page: Page, address: str):
    """Both from the keyboard's reach; the manifest can be dropped, and has the seed that was drawn by lot."""
    id = finished(address, {"prompt": "a recipe", "steps": 2, "width": 64, "height": 64})
    page.goto(f"/pictures/{id}")
    page.get_by_role("button", name="Copy recipe").press("Enter")
    expect(page.locator("#said")).to_have_text("Copied")
    recipe = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert (recipe["prompt"], recipe["steps"]) == ("a recipe", 2)
    page.get_by_role("button", name="Copy manifest").click()
    expect(page.locator("#copy-manifest")).to_have_text("Copied")
    again = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert again["seed"] == recipe["seeds"][0]
    assert "scheduler" in again
    assert validate_manifest(again).prompt == "a recipe"


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


def test_every_page_fits_a_phone_and_has_a_light_and_a_dark_face(page: Page, address: str):
    """360 pixels wide without scrolling sideways, with the longest of words; the ground follows the scheme."""
    id = finished(address, QUICK | {"prompt": "w" * 300})
    httpx.post(f"{address}/batches?id=phone", content=json.dumps(QUICK)).raise_for_status()
    page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/", f"/pictures/{id}", "/b", "/b/phone", "/docs"):
        grounds = []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
            chips = page.locator(".status").evaluate_all("all => all.map((chip) => chip.offsetHeight)")
            assert max(chips, default=0) < 30, "a status is broken over several lines"
            grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        light, dark = (sum(map(int, ground.removeprefix("rgb(")[:-1].split(", "))) for ground in grounds)
        assert light > 600 > 150 > dark


def test_the_documentation_is_drawn_from_this_server_alone(page: Page):
    """Swagger UI, with the examples of each body."""
    page.goto("/docs")
    expect(page.locator("#operations-Draw-generate_generate__post, [id*=generate]").first).to_be_visible()


def test_without_a_worker_it_is_said_and_requests_wait(browser: Browser, tmp_path: Path):
    """A note, and the request in the queue with its place."""
    with facade(tmp_path) as address:
        pages = clean(browser, address)
        page = next(pages)
        page.goto("/")
        expect(page.get_by_text("No worker is alive.")).to_be_visible()
        draw(page, "patient")
        expect(page.locator("#queue li").filter(has_text="patient")).to_contain_text("next in turn")
        assert next(pages, None) is None


def test_with_keys_the_browser_asks_and_all_goes_on(browser: Browser, store: Path):
    """The password of the browser's question goes with every fetch and every stream of events."""
    key, line = new_key("alice")
    with facade(store, keys=read_keys(line)) as address:
        assert httpx.get(f"{address}/").headers["www-authenticate"].startswith("Basic")
        pages = clean(browser, address, http_credentials={"username": "any", "password": key})
        page = next(pages)
        page.goto("/")
        draw(page, "behind a key", steps=20)
        expect(tile(page, "behind a key")).to_be_visible()
        assert next(pages, None) is None


def test_without_javascript_everything_can_be_looked_at(browser: Browser, address: str):
    """The gallery, a picture with its recipe, and the batches are plain HTML."""
    id = finished(address, QUICK | {"prompt": "plain html"})
    context = browser.new_context(base_url=address, java_script_enabled=False)
    page = context.new_page()
    page.goto("/")
    page.locator(f"a[href='/pictures/{id}']").click()
    expect(page.locator("h1")).to_have_text("plain html")
    expect(page.get_by_role("row", name="Steps")).to_contain_text("2")
    expect(page.get_by_role("link", name="Download manifest")).to_be_visible()
    page.goto("/b")
    expect(page.get_by_role("heading", name="Batches")).to_be_visible()
    context.close()


def test_what_has_not_changed_is_not_sent_again(address: str):
    """A page that asks for itself every second costs a comparison."""
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


def test_a_caller_with_a_prefix_sees_its_own_pictures_only(store: Path, address: str):
    """On every page: others' are not found."""
    finished(address, QUICK | {"id": "not-for-bob", "prompt": "not for bob"})
    key, line = new_key("bob", prefix="bob")
    with facade(store, keys=read_keys(line)) as own:
        head = {"Authorization": f"Bearer {key}"}
        mine = httpx.post(
            f"{own}/generate/", json=QUICK | {"prompt": "for bob"}, headers=head, timeout=60
        ).json()
        pages = [httpx.get(own + path, headers=head).text for path in ("/", "/live?now=1", "/b")]
        assert "for bob" in pages[0]
        assert not any("not for bob" in page for page in pages)
        assert httpx.get(f"{own}/pictures/{mine['id']}", headers=head).status_code == 200
        for path in ("/pictures/", "/b/", "/recipe/"):
            assert httpx.get(f"{own}{path}not-for-bob", headers=head).status_code == 404
