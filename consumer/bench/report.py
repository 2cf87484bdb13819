"""What was measured, for people: a table, a plot and the settings that a worker should have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consumer.bench.measure import Cell
    from infra.models.cards import ModelCard

HEAD = f"{'size':>11} {'rows':>5} {'ms a step':>10} {'ms a row':>9} {'images/s':>9} {'memory':>9}"
NEAR = 0.95  # of the best rate: more rows than that takes only make every image wait
_PICTURE_MEMORY = 256  # MiB, the worker's default
_MIN_ROWS = 2  # of the worker's --max-rows


@dataclass(frozen=True, slots=True)
class Advice:
    """Settings for `dreamdrop worker`."""

    max_rows: int
    picture_memory: int | None  # MiB; None: the default is enough
    offload: bool  # a size did not fit at all
    still_faster: bool  # the most rows that were measured are the best: more may be better

    def options(self) -> list[str]:
        options = ["--max-rows", str(self.max_rows)]
        options += ["--picture-memory", str(self.picture_memory)] if self.picture_memory else []
        return [*options, "--offload"] if self.offload else options


def line(cell: Cell, card: ModelCard) -> str:
    """A row of the table."""
    size, memory = f"{cell.width} x {cell.height}", _mib(cell.memory)
    rate = rate_of(cell, card)
    if cell.step_ms is None or cell.row_ms is None or rate is None:
        return f"{size:>11} {cell.asked:>5} {'-':>10} {'-':>9} {'-':>9} {memory:>9}  {cell.problem}"
    figures = f"{cell.step_ms:>10.4g} {cell.row_ms:>9.3g} {rate:>9.3g}"
    return f"{size:>11} {cell.asked:>5} {figures} {memory:>9}  {cell.problem}".rstrip()


def rate_of(cell: Cell, card: ModelCard) -> float | None:
    """Images a second with the model's own steps and guidance."""
    return cell.images_per_second(card.steps, 2 if card.cfg_scale > 1 else 1)


def advice(cells: Sequence[Cell], card: ModelCard) -> Advice | None:
    """The settings that the measurements speak for; None if nothing was measured.

    Of each size the fewest rows whose rate is near the best one, and of those the most. A worker takes twice as many
    images ahead, and their pixels must fit into half of its picture memory.
    """
    chosen = []
    for size in {(cell.width, cell.height) for cell in cells}:
        rates = {
            cell.rows: rate
            for cell in cells
            if (cell.width, cell.height) == size and (rate := rate_of(cell, card)) is not None
        }
        if rates:
            chosen.append(min(rows for rows, rate in rates.items() if rate >= NEAR * max(rates.values())))
    if not chosen:
        return None
    max_rows = max(_MIN_ROWS, *chosen)
    largest = max(cell.width * cell.height for cell in cells if cell.step_ms is not None)
    need = math.ceil(2 * (2 * max_rows) * 3 * largest / 2**20)
    fits = {(cell.width, cell.height) for cell in cells if cell.step_ms is not None}
    lacks = {(cell.width, cell.height) for cell in cells if "memory" in cell.problem} - fits
    still_faster = max(chosen) == max(cell.rows for cell in cells)
    return Advice(max_rows, need if need > _PICTURE_MEMORY else None, bool(lacks), still_faster)


def _mib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**20:,.0f} MiB"


# The plot ----------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 720, 420, 70, 50, 130, 60  # pixels; the last four are margins
_COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2")


def plot(cells: Sequence[Cell], card: ModelCard, title: str) -> str:
    """An SVG of images a second by the rows of a call, a line for each size."""
    lines: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for cell in cells:
        if (rate := rate_of(cell, card)) is not None:
            lines.setdefault((cell.width, cell.height), []).append((cell.rows, rate))
    points = [point for of_size in lines.values() for point in of_size]
    most = max((rate for _, rate in points), default=1.0)
    ticks = sorted({rows for rows, _ in points})
    low, high = math.log2(min(ticks, default=1)), math.log2(max(ticks, default=2))

    def x(rows: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (math.log2(rows) - low) / ((high - low) or 1)

    def y(rate: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * rate / (1.05 * most)

    parts = [_text(_LEFT, 28, title, size=16)]
    parts += [_text(x(rows), _HEIGHT - _BOTTOM + 20, str(rows), "middle") for rows in ticks]
    for quarter in range(5):
        rate = most * quarter / 4
        parts.append(_stroke([(_LEFT, y(rate)), (_WIDTH - _RIGHT, y(rate))], "#d4d4d8", 1))
        parts.append(_text(_LEFT - 8, y(rate) + 4, f"{rate:.3g}", "end"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, "rows in a UNet call", "middle"))
    parts.append(_text(_LEFT, _TOP - 6, "images a second"))
    for number, (size, of_size) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        drawn = [(x(rows), y(rate)) for rows, rate in of_size]
        parts.append(_stroke(drawn, colour, 2))
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>' for a, b in drawn]
        parts.append(_text(drawn[-1][0] + 10, drawn[-1][1] + 4, f"{size[0]} x {size[1]}", colour=colour))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif">'
    ground = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    return "\n".join([head, ground, *parts, "</svg>", ""])


def _text(
    x: float, y: float, text: str, anchor: str = "start", *, size: int = 13, colour: str = "#18181b"
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f"<text {place}>{escape(text)}</text>"


def _stroke(points: Sequence[tuple[float, float]], colour: str, width: int) -> str:
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def document(cells: Sequence[Cell], card: ModelCard, facts: dict[str, Any]) -> dict[str, Any]:
    """All of it as JSON."""
    found = advice(cells, card)
    rows = [cell.facts() | {"images_per_second": rate_of(cell, card)} for cell in cells]
    recommended = None if found is None else {"worker": found.options(), "ahead": 2 * found.max_rows}
    return {**facts, "cells": rows, "recommended": recommended}
