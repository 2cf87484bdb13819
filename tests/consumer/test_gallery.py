"""The gallery page: it is self-contained, it runs nothing, and no text becomes markup."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from consumer.jobs.gallery import GalleryItem, contact_sheet, page, thumbnail
from schemas.result import BatchCounts

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '" autofocus onfocus="alert(1)',
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</pre></details><iframe src=javascript:alert(1)>",
    "<!--<script>alert(1)//-->",
    "]]><script>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "//evil.example/x.png",
    "\u202egnp.exe",
    "\0<scr\0ipt>",
    "{{7*7}} ${7*7} <%= 7*7 %>",
    "\ud800",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
]


class Reader(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(body.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(name: str, picture: bytes, **parameters: Any) -> GalleryItem:
    """An item with a thumbnail."""
    return GalleryItem(name, "a prompt", "succeeded", None, parameters, thumbnail=thumbnail(picture))


def drawn(size: tuple[int, int] = (64, 64), colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def item(**changes: Any) -> GalleryItem:
    fields: dict[str, Any] = {
        "id": "cat",
        "prompt": "a red circle",
        "seed": 5,
        "status": "succeeded",
        "image_href": "cat/0.png",
        "thumbnail": thumbnail(drawn()),
        "failure": None,
        "parameters": {"steps": 20, "cfg_scale": 7.0, "model": "doodle"},
    }
    return GalleryItem(**(fields | changes))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_becomes_markup(payload: str):
    """Wherever the author of a request can put text: the same elements, no handler, no foreign address."""

    def filled(text: str) -> Reader:
        everywhere: dict[str, Any] = {"id": text, "prompt": text, "status": text}
        everywhere["parameters"] = {"model": text, "scheduler": text, text: [text]}
        return Reader(
            page(
                text,
                [
                    item(**everywhere, image_href=text),
                    item(**everywhere, image_href=text, thumbnail=None, failure=text),
                    item(**everywhere, image_href=None, thumbnail=None, failure=text),
                ],
            )
        )

    hostile, harmless = filled(payload), filled("harmless")
    assert hostile.tags == harmless.tags
    assert "script" not in hostile.tags
    assert [(t, n) for t, n, _ in hostile.attributes] == [(t, n) for t, n, _ in harmless.attributes]
    for _, name, value in hostile.attributes:
        assert not name.startswith("on")
        if name in ("href", "src"):
            assert not re.match(r"\s*(?:(?!data:image/webp;)[a-z]+:|//|\\)", value, re.IGNORECASE)


def test_the_policy_names_the_style_and_allows_no_script():
    """The hash is the style's; nothing else may load but embedded pictures and those beside the page."""
    body = page("t", [item()]).decode()
    style = re.search(r"<style>(.*?)</style>", body, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    [policy] = [value for tag, name, value in Reader(body.encode()).attributes if "default-src" in value]
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_a_page_tells_what_happened():
    """It shows prompt, seed and settings, failure messages, and the counts of the batch."""
    failed = item(
        id="dog", image_href=None, thumbnail=None, seed=None, status="failed", failure="no such model"
    )
    read = Reader(page("cats & dogs", [item(), failed], counts=BatchCounts(total=2, succeeded=1, failed=1)))
    for text in (
        "cats & dogs",
        "a red circle",
        "seed 5",
        "20\u00a0steps",
        "cfg\u00a07",
        "no such model",
        "1 picture ·",
    ):
        assert text in read.text
    assert "2 requests: 1 succeeded, 1 failed" in read.text
    assert ("a", "href", "cat/0.png") in read.attributes
    assert [value for tag, name, value in read.attributes if name == "alt"] == ["a red circle"]


def test_strange_names_make_working_links():
    """Spaces, percent signs, question marks and hash marks are percent-encoded."""
    read = Reader(page("t", [item(image_href="a b/50%?#é.png")]))
    assert ("a", "href", "a%20b/50%25%3F%23%C3%A9.png") in read.attributes


def test_small_pictures_are_enlarged_sharply():
    """A small picture has a class for it, and its thumbnail is lossless."""
    read = Reader(page("t", [item(), item(thumbnail=thumbnail(drawn((300, 200))))]))
    assert [value for tag, name, value in read.attributes if (tag, name) == ("img", "class")] == ["small"]
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    with Image.open(io.BytesIO(thumbnail(buffer.getvalue()))) as small:
        assert small.convert("RGB").tobytes() == noise.tobytes()


def test_a_thumbnail_keeps_the_shape():
    """The longer side has the given size; nothing is enlarged."""
    with Image.open(io.BytesIO(thumbnail(drawn((1024, 512)), 256))) as small:
        assert (small.format, small.size) == ("WEBP", (256, 128))
    with Image.open(io.BytesIO(thumbnail(drawn((40, 30))))) as small:
        assert small.size == (40, 30)


@pytest.mark.parametrize("count", [0, 1, 8, 9])
def test_a_contact_sheet_shows_all_in_order(count: int):
    """Eight in a row, from the top left."""
    colours = ["red", "lime", "blue"]
    items = [shown(f"row {i}", drawn((64, 64), colours[i % 3])) for i in range(count)]
    with Image.open(io.BytesIO(contact_sheet(items, cell=64))) as image:
        assert image.format == "PNG"
        for i in range(count):
            x, y = 38 + i % 8 * 70, 38 + i // 8 * 100
            pixel = image.getpixel((x, y))
            assert isinstance(pixel, tuple)
            assert pixel.index(max(pixel)) == i % 3


def test_a_contact_sheet_says_which_row_is_which_and_what_differs():
    """The row's name, and the parameters that are not the same in all; each within its own cell."""
    names = ("a", "b", "a name that is much too long for its cell", "line\nbreak\0\ud800")
    items = [
        shown(name, drawn((64, 64)), steps=steps) for name, steps in zip(names, (4, 8, 8, 8), strict=True)
    ]
    with Image.open(io.BytesIO(contact_sheet(items, cell=64))) as image:
        cells = [image.crop((6 + i * 70, 70, 70 + i * 70, 100)).convert("L") for i in range(4)]
        gaps = [image.crop((70 + i * 70, 70, 76 + i * 70, 100)).convert("L") for i in range(4)]
    lines = [[cell.crop((0, top, 64, top + 15)).tobytes() for cell in cells] for top in (0, 15)]
    assert len(set(lines[0])) == 4  # the names
    assert lines[1][0] != lines[1][1] == lines[1][2]  # 4 steps, 8 steps
    assert all(low == high for gap in gaps for low, high in [gap.getextrema()])
    same = [shown(name, drawn((64, 64)), steps=4) for name in "ab"]
    with Image.open(io.BytesIO(contact_sheet(same, cell=64))) as image:
        low, high = image.crop((0, 85, image.width, 100)).convert("L").getextrema()
    assert low == high


def test_an_empty_batch_has_a_page():
    """A page without pictures is not an error."""
    assert "0 pictures" in Reader(page("nothing", [])).text
