"""The report of a training: one HTML page with the loss, the validation pictures by step, the settings and the drift.

The page is self-contained and executes nothing. It looks like the gallery of a batch. Every text is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_SIDE = 256  # pixels of a picture on the page
_MOST_STEPS = 12  # columns of the grid: the first, the last, and some between
_WIDTH, _HEIGHT, _MARGIN = 720, 220, 36  # of the curve, in its own units
_DRIFT = {
    "with_concept": "prompts with the concept changed by",
    "without": "prompts without it changed by",
}

# ruff: noqa: E501 - a style sheet
_STYLE = """
:root{color-scheme:light dark;--ground:#f6f5f2;--card:#fff;--ink:#22211f;--soft:#6d6a64;--line:#e4e1da;--mark:#3f6fb5}
@media(prefers-color-scheme:dark){:root{--ground:#161617;--card:#212123;--ink:#ecebe8;--soft:#9c9a95;--line:#333335;--mark:#8ab2ee}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.45 system-ui,-apple-system,"Segoe UI",sans-serif}
header{padding:2.2rem clamp(1rem,4vw,3rem) 1rem}
h1{margin:0;font-size:1.5rem;font-weight:650;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{margin:0 0 .6rem;font-size:1.05rem;font-weight:650}
header p,p.soft{margin:.3rem 0 0;color:var(--soft)}
main{display:grid;gap:1rem;padding:.5rem clamp(1rem,4vw,3rem) 3rem}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1rem;overflow-x:auto}
table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.3rem .5rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{color:var(--soft);font-weight:500}
td.prompt{min-width:8rem;max-width:14rem}
img{width:8rem;display:block;border-radius:6px}
img.small{image-rendering:pixelated}
svg{width:100%;max-width:60rem;height:auto}
svg text{fill:var(--soft);font-size:11px}
svg .axis{stroke:var(--line)}
svg .each{fill:none;stroke:var(--line)}
svg .smooth{fill:none;stroke:var(--mark);stroke-width:2}
"""


def page(facts: Mapping[str, Any], losses: Sequence[Mapping[str, Any]], validation: Path) -> bytes:
    """One self-contained HTML page.

    Args:
        facts: `product.json`.
        losses: what is remembered of each step, in order.
        validation: the folder of validation pictures: `prompts.json` and `<step>/<k>.png`.
    """
    title = html.escape(f"{facts['name']}: {facts['steps']} steps on {facts['base']['name']}")
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    about = [
        {"lora": "LoRA", "full": "full model"}[facts["kind"]],
        f"{len(facts['pictures'])} pictures",
        f"say {' '.join(facts['trigger_words'])!r} to draw it",
    ]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{title} · Dreamdrop</title><style>{_STYLE}</style></head><body>",
        f"<header><h1>{title}</h1><p>{html.escape(' · '.join(about))}</p></header><main>",
        _section("Pictures by step", _grid(validation) + _drift(facts["drift"])),
        _section("Loss", _curve(losses)),
        _section("Settings", _table({k: v for k, v in facts["options"].items() if v not in (None, [], ())})),
        _section("Pictures it learned from", _table({p["name"]: p["caption"] for p in facts["pictures"]})),
        "</main></body></html>\n",
    ]
    return "".join(parts).encode(errors="replace")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>" if body else ""


def _table(rows: Mapping[str, Any]) -> str:
    lines = []
    for name, value in rows.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"<tr><th>{html.escape(name)}</th><td>{html.escape(shown)}</td></tr>")
    return f"<table>{''.join(lines)}</table>"


def _drift(drift: Mapping[str, float | None]) -> str:
    said = [
        f"{text} {drift[name]:.1f} grey levels of 255"
        for name, text in _DRIFT.items()
        if drift.get(name) is not None
    ]
    return f'<p class="soft">{"; ".join(said)}</p>' if said else ""


def _grid(validation: Path) -> str:
    try:
        prompts: list[str] = json.loads((validation / "prompts.json").read_text())
    except (OSError, ValueError):
        return ""
    steps = sorted(int(folder.name) for folder in validation.iterdir() if folder.name.isdigit())
    if len(steps) > _MOST_STEPS:
        last = len(steps) - 1
        steps = [steps[round(i * last / (_MOST_STEPS - 1))] for i in range(_MOST_STEPS)]
    head = "".join(f"<th>{'before' if step == 0 else f'step {step:,}'}</th>" for step in steps)
    lines = []
    for number, prompt in enumerate(prompts):
        cells = "".join(
            f"<td>{_picture(validation / f'{step:06d}' / f'{number}.png', prompt)}</td>" for step in steps
        )
        lines.append(f'<tr><td class="prompt" dir="auto">{html.escape(prompt)}</td>{cells}</tr>')
    return f"<table><tr><th></th>{head}</tr>{''.join(lines)}</table>"


def _picture(file: Path, prompt: str) -> str:
    if not file.is_file():
        return ""
    with Image.open(file) as picture:
        small = picture.convert("RGB")
        kind = ' class="small"' if max(small.size) <= 128 else ""
        small.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=88, method=2, lossless=bool(kind))
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/webp;base64,{data}" alt="{html.escape(prompt)}"{kind} loading="lazy">'


def _curve(losses: Sequence[Mapping[str, Any]]) -> str:
    """The loss of each step, and its running mean, as an SVG."""
    points = [(int(x["step"]), float(x["loss"])) for x in losses if x["loss"] is not None]
    missed = [int(x["step"]) for x in losses if x["loss"] is None]
    if len(points) < 2:
        return ""
    smooth, mean = [], points[0][1]
    for step, value in points:
        mean = 0.95 * mean + 0.05 * value
        smooth.append((step, mean))
    first, last = points[0][0], points[-1][0]
    top = max(value for _, value in points) or 1.0

    def line(of: Sequence[tuple[int, float]]) -> str:
        return " ".join(
            f"{_MARGIN + (_WIDTH - 2 * _MARGIN) * (step - first) / max(1, last - first):.1f},"
            f"{_HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * value / top:.1f}"
            for step, value in of
        )

    note = (
        f'<p class="soft">not a finite number, and skipped: steps {", ".join(map(str, missed))}</p>'
        if missed
        else ""
    )
    floor = _HEIGHT - _MARGIN
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="loss by step">'
        f'<line class="axis" x1="{_MARGIN}" y1="{floor}" x2="{_WIDTH - _MARGIN}" y2="{floor}"/>'
        f'<polyline class="each" points="{line(points)}"/><polyline class="smooth" points="{line(smooth)}"/>'
        f'<text x="{_MARGIN}" y="{_HEIGHT - 14}">step {first:,}</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 14}" text-anchor="end">step {last:,}</text>'
        f'<text x="{_MARGIN}" y="{_MARGIN - 14}">{top:.3g}</text>'
        f'<text x="{_WIDTH - _MARGIN}" y="{_MARGIN - 14}" text-anchor="end">last mean {smooth[-1][1]:.4f}</text></svg>{note}'
    )
