"""Reads and checks the input of `dreamdrop submit`: files, folders, patterns and standard input.

Everything is checked before anything is sent, so that one fault in a thousand files does not leave half
of them submitted.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from producer import bulk
from producer.requests import batch_parcel, parcel, read_file
from schemas.batch import split_rows
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest import DEFAULT_LIMITS

KINDS = (".json", ".jsonl", ".csv", ".txt")
_EXTENSIONS = ".json, .jsonl, .csv or .txt"
STDIN = "-"


@dataclass(frozen=True, slots=True)
class Item:
    """A request or a batch to be dropped."""

    name: str  # as the user gave it
    batch: bool
    body: bytes
    id: str | None  # chosen by the user


def gather(names: Iterable[str], *, id: str | None = None, limits: Limits = DEFAULT_LIMITS) -> list[Item]:
    """Read and check everything.

    Raises:
        Rejected: all faults at once, a line for each file.
    """
    items, faults = [], []
    for name in _expanded(names):
        try:
            items.append(_item(name, id, limits))
        except Rejected as fault:
            faults.append((name, fault))
    if faults:
        raise _all(faults)
    if id is not None and len(items) != 1:
        raise Rejected("invalid_manifest", f"--id names one request, but {len(items)} were given", field="id")
    return items


def row_ids(item: Item, batch: str) -> list[str]:
    """The ids of a batch's rows; [] for a single request."""
    return [row.id for row in split_rows(batch, item.body, DEFAULT_LIMITS)] if item.batch else []


def _expanded(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        path = Path(name)
        if name == STDIN or path.is_file():
            yield name
        elif path.is_dir():
            files = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in KINDS and p.is_file())
            if not files:
                raise Rejected("invalid_manifest", f"the folder {name!r} holds no {_EXTENSIONS} file")
            yield from files
        elif glob.has_magic(name):
            files = sorted(p for p in glob.glob(name, recursive=True) if Path(p).is_file())
            if not files:
                raise Rejected("invalid_manifest", f"no file matches {name!r}")
            yield from files
        else:
            raise Rejected("invalid_manifest", f"there is no file {name!r}")


def _item(name: str, id: str | None, limits: Limits) -> Item:
    body = sys.stdin.buffer.read() if name == STDIN else read_file(name)
    kind = _kind_of(body) if name == STDIN else Path(name).suffix.lower()
    if kind == ".json":
        parcel(body, id=id, express=False, limits=limits)
        return Item(name, False, body, id)
    if kind == ".csv":
        body = bulk.from_csv(body, folder=Path(name).parent, limits=limits)
    elif kind == ".txt":
        body = bulk.from_text(body)
    elif kind != ".jsonl":
        raise Rejected("invalid_manifest", f"this is not a {_EXTENSIONS} file; rename it after what it holds")
    batch_parcel(body, id=id, express=False, limits=limits)
    return Item(name, True, body, id)


def _kind_of(body: bytes) -> str:
    """The kind of what was piped in: objects on several lines, one object, or prompts."""
    lines = [line.strip() for line in body.splitlines() if line.strip()]
    if not lines or not lines[0].startswith(b"{"):
        return ".txt"
    return ".jsonl" if len(lines) > 1 and all(line.startswith(b"{") for line in lines) else ".json"


def _all(faults: list[tuple[str, Rejected]]) -> Rejected:
    first = faults[0][1]
    lines = [f"{'standard input' if name == STDIN else name}: {fault.message}" for name, fault in faults[:20]]
    if len(faults) > 20:
        lines.append(f"and {len(faults) - 20} more")
    text = (
        lines[0]
        if len(lines) == 1
        else "\n  ".join([f"nothing was sent, because {len(faults)} files have faults", *lines])
    )
    return Rejected(first.code, text, field=first.field, line=first.line, column=first.column)
