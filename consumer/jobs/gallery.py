"""The gallery of a batch: HTML pages with every picture, a few hundred each, and a contact sheet.

A page is self-contained: thumbnails are embedded, and a click enlarges one. Full pictures are linked,
relative to the page: they open beside it and where it is served. Nothing is fetched or executed. Every text from a request is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from schemas.result import BatchCounts

_SHEET_COLUMNS = 8
_GAP = 6  # pixels
_TEXT, _LINE = 11, 15  # pixels; the height of the contact sheet's letters and lines
_MOST_LETTERS = 80  # more do not fit into a cell
_PAPER, _INK, _SOFT = (246, 245, 242), (34, 33, 31), (109, 106, 100)
_FEW_PIXELS = 128  # on a side; a small picture
#: What Pillow raises for a file that is no picture, or a hostile one.
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_LABELS = {  # how the page shows each parameter
    "model": "{}",
    "scheduler": "{}",
    "steps": "{}\u00a0steps",
    "cfg_scale": "cfg\u00a0{:g}",
    "strength": "strength\u00a0{:g}",
    "upscale": "upscaled\u00a0{0[scale]:g}\u00a0times",
    "refiner": "refined\u00a0by\u00a0{0[model]}",
}

# ruff: noqa: E501 - a style sheet
_STYLE = """
:root{color-scheme:light dark;--ground:#f6f5f2;--card:#fff;--ink:#22211f;--soft:#6d6a64;--line:#e4e1da;--bad:#b3372b}
@media(prefers-color-scheme:dark){:root{--ground:#161617;--card:#212123;--ink:#ecebe8;--soft:#9c9a95;--line:#333335;--bad:#ff8b7e}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.45 system-ui,-apple-system,"Segoe UI",sans-serif}
header{padding:2.2rem clamp(1rem,4vw,3rem) 1rem}
h1{margin:0;font-size:1.5rem;font-weight:650;letter-spacing:-.01em;overflow-wrap:anywhere}
header p{margin:.3rem 0 0;color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:1rem;padding:.5rem clamp(1rem,4vw,3rem)}
main{display:grid;gap:1rem;align-items:start;grid-template-columns:repeat(auto-fill,minmax(min(100%,13rem),1fr));padding:.5rem clamp(1rem,4vw,3rem) 3rem}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:12px;overflow:hidden;display:flex;flex-direction:column;transition:border-color .15s}
figure:hover{border-color:var(--soft)}
figure a.large{display:block;line-height:0}
figure a:focus-visible{outline:3px solid Highlight;outline-offset:-3px}
img{width:100%;aspect-ratio:1;object-fit:contain;background:var(--ground)}
img.small{image-rendering:pixelated}
figcaption{padding:.7rem .85rem .85rem}
.prompt{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;overflow:hidden;overflow-wrap:anywhere}
.facts{margin-top:.3rem;color:var(--soft);font-size:.8rem;overflow-wrap:anywhere}
.why{aspect-ratio:1;display:grid;place-items:center;padding:1.2rem;overflow:auto;color:var(--bad);background:color-mix(in srgb,var(--bad) 8%,var(--card));font-size:.9rem;text-align:center;overflow-wrap:anywhere}
.facts+.why{aspect-ratio:auto;margin-top:.5rem;padding:.5rem;border-radius:8px;font-size:.8rem}
figure:target{position:fixed;inset:0;z-index:1;border-radius:0;overflow:auto}
figure:target img{aspect-ratio:auto;height:80vh}
figure:target .large{pointer-events:none}
figure:target .prompt{display:block}
.close{display:none}
figure:target .close{display:inline;margin-left:1rem}
details{font-size:.8rem;color:var(--soft);margin-top:.35rem}
summary{cursor:pointer}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.4rem 0 0;font-size:.75rem}
"""


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One picture, or one request that has none."""

    id: str
    prompt: str
    status: str
    failure: str | None
    parameters: Mapping[str, Any]
    seed: int | None = None
    image_href: str | None = None  # relative to the page
    thumbnail: bytes | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Which page of a gallery."""

    number: int  # from 1
    pages: int
    pictures: int  # on all pages


def page_name(number: int) -> str:
    """The name of a page's file, from number 1."""
    return "gallery.html" if number == 1 else f"gallery-{number}.html"


def page(
    title: str,
    items: Sequence[GalleryItem],
    *,
    counts: BatchCounts | None = None,
    place: Place | None = None,
) -> bytes:
    """One self-contained HTML page. `place`: None for a gallery with one page."""
    place = place or Place(1, 1, sum(1 for item in items if item.image_href))
    shown = place.pictures
    parts = [f"{shown} {'picture' if shown == 1 else 'pictures'}"]
    if counts is not None:
        ended = {k: v for k, v in counts.model_dump().items() if v and k != "total"}
        parts.append(f"{counts.total} requests: " + ", ".join(f"{v} {k}" for k, v in ended.items()))
    if place.pages > 1:
        parts.append(f"page {place.number} of {place.pages}")
    turn = _turning(place)
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data: 'self'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    safe_title = html.escape(title)
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{safe_title} · Dreamdrop</title><style>{_STYLE}</style></head><body>",
            f"<header><h1>{safe_title}</h1><p>{html.escape(' · '.join(parts))}</p></header>{turn}<main>",
            *(_figure(item, number) for number, item in enumerate(items)),
            f"</main>{turn}</body></html>\n",
        ]
    ).encode(errors="replace")


def _turning(place: Place) -> str:
    """Links to the other pages: the first, the ones beside this one, the last."""
    if place.pages == 1:
        return ""
    links = [
        ("First", 1 if place.number > 2 else 0),
        ("← Previous", place.number - 1),
        ("Next →", place.number + 1 if place.number < place.pages else 0),
        ("Last", place.pages if place.number < place.pages - 1 else 0),
    ]
    shown = "".join(f'<a href="{page_name(number)}">{name}</a>' for name, number in links if number)
    return f'<nav aria-label="Pages">{shown}</nav>'


def _figure(item: GalleryItem, number: int) -> str:
    """One picture. A click enlarges what the page holds, which works in a copy of the page, too."""
    prompt = html.escape(item.prompt or item.id)
    if item.image_href:
        source = _data_uri(item.thumbnail) if item.thumbnail else _relative(item.image_href)
        top = f'<a class="large" href="#p{number}"><img src="{source}" alt="{prompt}"{_small(item.thumbnail)} loading="lazy"></a>'
    else:
        top = f'<div class="why">{html.escape(item.failure or item.status)}</div>'
    facts = [item.id] + ([f"seed {item.seed}"] if item.seed is not None else [])
    parameters = item.parameters
    settings = _settings(item, _LABELS)
    lines = "".join(
        f'<div class="facts">{html.escape(" · ".join(line))}</div>' for line in (facts, settings) if line
    )
    if item.image_href and item.failure:
        lines += f'<div class="why">{html.escape(item.failure)}</div>'
    if item.image_href:
        href = html.escape(_relative(item.image_href))
        lines += f'<div class="facts"><a href="{href}">full picture</a><a class="close" href="#c{number}">close</a></div>'
    recipe = html.escape(json.dumps(dict(parameters), indent=1, ensure_ascii=False))
    more = f"<details><summary>recipe</summary><pre>{recipe}</pre></details>" if parameters else ""
    return (
        f'<div id="c{number}"><figure id="p{number}">{top}<figcaption><div class="prompt" dir="auto">{prompt}</div>'
        f"{lines}{more}</figcaption></figure></div>"
    )


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of a text as fits into a line of a width in pixels."""
    text = " ".join(text.encode(errors="replace").decode().split())[:_MOST_LETTERS]
    cut = text
    while text and font.getlength(cut) > width:
        text = text[:-1]
        cut = text.rstrip() + "…"
    return cut if text else ""


def _settings(item: GalleryItem, names: Iterable[str]) -> list[str]:
    """Parameters of a picture, in words."""
    return [
        _LABELS[name].format(item.parameters[name]) for name in names if item.parameters.get(name) is not None
    ]


def _relative(href: str) -> str:
    """A relative address, which cannot lead to another host or scheme."""
    return quote(href.lstrip("/"), errors="replace")


def _small(thumbnail: bytes | None) -> str:
    """The class of a small picture, which is enlarged without blurring."""
    if thumbnail is None:
        return ""
    with Image.open(io.BytesIO(thumbnail)) as picture:
        return ' class="small"' if max(picture.size) <= _FEW_PIXELS else ""


def _data_uri(thumbnail: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(thumbnail).decode()


def thumbnail(data: bytes, side: int = 256) -> bytes:
    """A WebP of at most side x side pixels; small pictures keep their size."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as picture:
        small = picture.convert("RGB")
        small.thumbnail((side, side))
        buffer = io.BytesIO()
        few = max(small.size) <= _FEW_PIXELS  # enlarged on the page, where losses would show
        small.save(buffer, "WEBP", quality=88, method=2, lossless=few)
        return buffer.getvalue()


def for_sheet(item: GalleryItem) -> GalleryItem:
    """Only what the contact sheet shows of an item."""
    return replace(
        item, prompt="", parameters={n: item.parameters[n] for n in _LABELS if n in item.parameters}
    )


def contact_sheet(items: Sequence[GalleryItem], cell: int = 128) -> bytes:
    """All thumbnails on one PNG, in order, at most eight in a row; below each its row's name and what differs."""
    shown = [(item.thumbnail, item) for item in items if item.thumbnail]
    columns = min(_SHEET_COLUMNS, len(shown)) or 1
    rows = -(-len(shown) // columns) or 1
    across, down = cell + _GAP, cell + 2 * _LINE + _GAP
    sheet = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    differing = [
        name for name in reversed(_LABELS) if len({str(item.parameters.get(name)) for _, item in shown}) > 1
    ]
    for i, (data, item) in enumerate(shown):
        left, top = _GAP + i % columns * across, _GAP + i // columns * down
        with Image.open(io.BytesIO(data)) as picture:
            small = picture.convert("RGB")
            small.thumbnail((cell, cell))
            sheet.paste(small, (left + (cell - small.width) // 2, top + (cell - small.height) // 2))
        facts = " · ".join(_settings(item, differing)).replace("\u00a0", " ")
        for line, (text, ink) in enumerate(((item.id, _INK), (facts, _SOFT))):
            draw.text((left, top + cell + line * _LINE), _cut(text, cell, font), ink, font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
