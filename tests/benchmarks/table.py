"""Rows of ratios: each from pairs that ran side by side, as a median with its range."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Row:
    """One figure."""

    what: str
    values: Sequence[float]
    aim: str = ""
    unit: str = "x"  # "x": a ratio; "%": a share; else a unit of its own
    note: str = ""

    def text(self) -> str:
        scale = 100 if self.unit == "%" else 1
        low, mid, high = (
            f"{scale * v:,.3g}" if scale * v < 1000 else f"{scale * v:,.0f}"
            for v in (min(self.values), statistics.median(self.values), max(self.values))
        )
        spread = f"{low} to {high}" if len(self.values) > 1 else ""
        return (
            f"  {self.what:<58} {mid:>7} {self.unit:<6} {spread:<16} n={len(self.values):<3}"
            f" {self.aim:<11} {self.note}"
        ).rstrip()


@dataclass
class Table:
    """All that one benchmark found; printed as it is found."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    section: str = ""

    def head(self, title: str, about: str = "") -> None:
        self.section = title
        print(f"\n{title}" + (f"\n  ({about})" if about else ""), flush=True)

    def add(self, row: Row) -> None:
        self.rows.append({"section": self.section, **asdict(row), "median": statistics.median(row.values)})
        print(row.text(), flush=True)

    def say(self, text: str) -> None:
        """Something that is no figure, such as why one is missing."""
        self.rows.append({"section": self.section, "note": text})
        print(f"  {text}", flush=True)
