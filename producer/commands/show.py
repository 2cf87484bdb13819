"""Tables for people: results, findings, dead letters, and an overview of a store.

Everything here goes to standard error, except the table that a command was asked for. Standard output is
for paths, ids and JSON, so that commands can be chained. What strangers wrote is a `Text`, never markup.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from producer.request_state import State

if TYPE_CHECKING:
    from infra.queues.setup_check import Finding
    from producer.checks.dead_letters import DeadLetter
    from producer.overview import Asked, Overview
    from schemas.result import Failure, Progress, Result

COLOURS = {
    "succeeded": "green",
    "partial": "yellow",
    "failed": "red",
    "canceled": "magenta",
    "expired": "magenta",
}
_SIGNAL = {"pass": "green", "warn": "yellow", "fail": "red"}

people = Console(stderr=True)
REASON = 120  # characters of a failure in an overview; `status ID` shows all of them
SHOWN = 20  # queued requests in an overview, and as many in progress


def why(failure: Failure | None) -> str:
    """A failure in one line."""
    if failure is None:
        return ""
    where = (
        f"line {failure.line}: "
        if failure.line is not None and f"line {failure.line}" not in failure.message
        else ""
    )
    return where + failure.message


def summary(results: Iterable[Result], names: Mapping[str, str]) -> None:
    """Print counts in a line, and a table of what did not succeed."""
    results = list(results)
    counts = Counter(result.status for result in results)
    images = sum(len(result.images) for result in results)
    statuses = ", ".join(f"[{COLOURS[s]}]{n} {s}[/]" for s, n in counts.most_common())
    people.print(f"{statuses or 'nothing has ended'}; {images} image{'s' * (images != 1)}")
    bad = [result for result in results if result.status != "succeeded"]
    if bad:
        table = Table("request", "status", "why", box=None, padding=(0, 2, 0, 0))
        for result in bad[:50]:
            table.add_row(
                Text(names.get(result.id, result.id)), _coloured(result.status), Text(why(result.failure))
            )
        people.print(table)
        if len(bad) > 50:
            people.print(f"and {len(bad) - 50} more")


def findings(rows: Iterable[Finding]) -> Table:
    """A table of findings; below each problem stands what to do."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(width=4)
    table.add_column(min_width=16)
    table.add_column()
    for row in rows:
        text = Text(row.found)
        if row.fix:
            text.append("\n→ ", "bold").append(row.fix)
        table.add_row(f"[{_SIGNAL[row.status]}]{row.status}[/]", Text(row.check), text)
    return table


def finding(row: Finding) -> Table:
    """A table of one finding."""
    return findings([row])


def dead_letters(rows: Sequence[DeadLetter]) -> Table | str:
    """A table of messages that were received too often."""
    if not rows:
        return "there are no dead letters"
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("message", no_wrap=True)
    for name in ("received", "what", "why"):
        table.add_column(name, overflow="fold")  # keys are long, and their ends matter
    for row in rows:
        table.add_row(row.message.id, str(row.message.receives), Text(row.what), Text(row.why))
    return table


def about(state: State, asked: Asked | None = None) -> str:
    """How far a request is, or what came of it and why, in a line."""
    failure = state.result.failure if state.result is not None else None
    return "; ".join(filter(None, (_brief(state, asked), why(failure))))


def _brief(state: State, asked: Asked | None = None) -> str:
    """How far a request is, or what came of it, in a few words."""
    if state.result is not None:
        result = state.result
        if result.batch is not None:
            counts = result.batch.counts
            return f"{counts.succeeded} of {counts.total} row{'s' * (counts.total != 1)}"
        return f"{len(result.images)} image{'s' * (len(result.images) != 1)}"
    if state.progress is not None and state.progress.steps_total:
        progress = state.progress
        image = min(progress.images_done + 1, progress.images_total)
        steps = f"step {progress.steps_done} of {progress.steps_total}"
        return f"{steps}, image {image} of {progress.images_total}{remaining(progress)}"
    batch = f"batch of {asked.rows} row{'s' * (asked.rows != 1)}" if asked and asked.batch else ""
    if state.position is not None:
        ahead = f"{state.position} ahead of it" if state.position else "next"
        return f"{batch}, {ahead}" if batch else ahead
    return batch


def states(
    rows: Iterable[State],
    asked: Mapping[str, Asked] | None = None,
    *,
    heading: str = "request",
    describe: Callable[[State, Asked | None], str] = about,
) -> Table:
    """A table of single requests; the columns that none of them fills are left out.

    Args:
        asked: what those ask for that have not ended, by id.
        heading: of the column of ids.
        describe: writes the last column.
    """
    opened = asked or {}
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = (heading, "status", "prompt", "when", "took", "about")
    lines = [
        (state.id, state.status, _prompt(state, a), _when(state, a), _took(state.result), describe(state, a))
        for state in rows
        for a in (opened.get(state.id),)
    ]
    used = [i for i, name in enumerate(names) if name == "about" or any(line[i] for line in lines)]
    table.expand = 2 in used
    for i in used:
        # In a narrow terminal prompts are cut and `about` is wrapped; statuses and times are what people look for.
        # A few words beside a prompt take the room that they need, and the prompt the rest.
        brief = names[i] == "about" and describe is _brief
        table.add_column(
            names[i],
            ratio=None if brief else {"prompt": 2, "about": 1}.get(names[i]),
            max_width=24 if brief else None,
            no_wrap=i in (2, 3, 4),
            overflow="fold" if i == 0 else "ellipsis",
        )
    for line in lines:
        table.add_row(*(_coloured(line[i]) if names[i] == "status" else Text(line[i]) for i in used))
    return table


def _prompt(state: State, asked: Asked | None) -> str:
    """The beginning of its prompt, in one line; the table cuts it to its width."""
    prompt = state.result.parameters.get("prompt") if state.result else asked and asked.prompt
    return " ".join(str(prompt or "")[:300].split())


def _when(state: State, asked: Asked | None) -> str:
    """How long ago a request ended, or was dropped or claimed if it has not ended."""
    if state.result is None:
        return _ago(time.time() - asked.since) if asked else ""
    try:
        ended = datetime.fromisoformat(state.result.finished_at)
    except ValueError:
        return ""
    return _ago((datetime.now(UTC) - (ended if ended.tzinfo else ended.replace(tzinfo=UTC))).total_seconds())


def _ago(seconds: float) -> str:
    """An age by this machine's clock, in one unit."""
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    size, unit = next(((s, u) for s, u in units if seconds >= s), (1, "s"))
    return f"{max(0, seconds) // size:.0f} {unit} ago"


def _took(result: Result | None) -> str:
    return f"{result.timings.total:.1f} s" if result is not None and result.timings is not None else ""


def remaining(progress: Progress) -> str:
    """The time that remains, if the worker has reported it."""
    return f", about {math.ceil(progress.eta)} s left" if progress.eta else ""


def counts(store: Overview, note: str = "") -> str:
    """A store's counts, in a line."""
    return (
        f"{len(store.queued)} queued, {len(store.processing)} processing, {store.over} ended{note}; "
        f"{store.workers} worker{'s' * (store.workers != 1)}"
    )


def overview(store: Overview, asked: Mapping[str, Asked]) -> Group:
    """A store's counts, a table of its requests, and below it why some of them failed."""
    some = f" (the newest {len(store.latest)} below)" if len(store.latest) < store.over else ""
    line, found = counts(store, some), rows(store)
    parts = [states(found, asked, describe=_brief)] if found else []
    failures = [(state.id, why(state.result.failure)) for state in found if state.result is not None]
    return Group(line, *parts, *_reasons([(id, text) for id, text in failures if text]))


def _reasons(failures: Sequence[tuple[str, str]]) -> list[str | Table]:
    """An empty line and a table of ids and reasons, each cut to two lines or so of a narrow terminal."""
    if not failures:
        return []
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("request", overflow="fold")
    table.add_column("why")
    for id, text in failures:
        table.add_row(Text(id), Text(text if len(text) <= REASON else text[: REASON - 1] + "…"))
    return ["", table]


def rows(store: Overview) -> list[State]:
    """The requests that an overview shows: queued, in progress, and ended ones."""
    found = [State(id, "queued", position=n) for n, id in enumerate(store.queued[:SHOWN])]
    found += [State(id, "processing", progress=p) for id, p in list(store.processing.items())[:SHOWN]]
    return found + [State(result.id, result.status, result=result) for result in store.latest]


def opened(store: Overview) -> list[str]:
    """The ids of the requests in an overview that have not ended."""
    return [*store.queued[:SHOWN], *list(store.processing)[:SHOWN]]


def _coloured(status: str) -> str:
    return f"[{COLOURS[status]}]{status}[/]" if status in COLOURS else status
