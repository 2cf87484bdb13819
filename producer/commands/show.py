"""Output for people: a progress bar while they wait, and tables of results and findings.

Everything here goes to standard error, except the table that a command was asked for. Standard output is
for paths, ids and JSON, so that commands can be chained.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from producer.commands.session import say
from producer.errors import StillWorking
from producer.request_state import State, read_progress, workers_alive
from schemas.errors import Unavailable

if TYPE_CHECKING:
    from infra.queues.setup_check import Finding
    from producer.checks.dead_letters import DeadLetter
    from producer.client import AsyncClient
    from producer.overview import Overview
    from producer.requests import Ticket
    from schemas.result import Failure, Result
    from schemas.result import Progress as RequestProgress

COLOURS = {
    "succeeded": "green",
    "partial": "yellow",
    "failed": "red",
    "canceled": "magenta",
    "expired": "magenta",
}
_SIGNAL = {"pass": "green", "warn": "yellow", "fail": "red"}
HINT_AFTER = 3.0  # seconds without a worker before a hint is printed
LOOK, LOOK_S3 = 0.5, 2.0  # seconds between two reads of the progress of single requests
FEW = 8  # requests whose steps are looked at
SHOWN = 2  # and written out: more would leave no room for the bar
PROMPT = 40  # characters of a prompt in a table
SAY_EVERY = 30.0  # seconds between two lines without a terminal

people = Console(stderr=True)


async def follow(
    client: AsyncClient,
    tickets: Sequence[Ticket | str],
    rows: Mapping[str, Sequence[str]],
    *,
    timeout: float | None,
    quiet: bool,
) -> tuple[dict[str, Result], StillWorking | None]:
    """Wait for requests and the rows of batches, with a progress bar.

    Args:
        rows: batch id to the ids of its rows.

    Returns:
        The results by id, those of a batch's rows included; and the error if the time ran out.
    """
    left = {str(ticket): ticket for ticket in tickets}
    left |= {row: row for ids in rows.values() for row in ids}
    ended: dict[str, Result] = {}
    with _bar(len(left), quiet) as bar:
        narrator = asyncio.create_task(_narrate(client, left, bar, quiet))
        try:
            async with contextlib.aclosing(client.results(list(left.values()), timeout)) as results:
                async for result in results:
                    ended[result.id] = result
                    done = [result.id, *(rows.get(result.id, ()))]  # a batch ends after all of its rows
                    bar.end(sum(_take(left, id) for id in done))
                    if not left:
                        break
        except StillWorking as error:
            return ended, StillWorking(sorted(left), timeout or 0) if left else error
        finally:
            narrator.cancel()
            await asyncio.gather(narrator, return_exceptions=True)
    return ended, None


def _take(left: dict[str, Ticket | str], id: str) -> bool:
    """Remove an id from those left; the result may have the id `<id>~<hash>`."""
    return (left.pop(id, None) or left.pop(id.partition("~")[0], None)) is not None


class _Bar:
    """How far all requests are: on a terminal a bar that moves by steps, else a line now and then."""

    def __init__(self, total: int, progress: Progress | None, quiet: bool) -> None:
        self._total, self._ended, self._progress, self._quiet = total, 0, progress, quiet
        self._task = progress.add_task("drawing", total=total, count="", doing="") if progress else None
        self._said = 0.0

    def end(self, count: int) -> None:
        """So many requests more have ended."""
        self._ended += count
        self._show(0.0, "")

    def describe(self, fraction: float, doing: str, now: float) -> None:
        """Show what is being drawn.

        Args:
            fraction: how much of the open requests is done, in requests.
            doing: the same in words.
            now: seconds, by any clock.
        """
        self._show(fraction, doing)
        self._said = self._said or now
        if self._progress is None and not self._quiet and now - self._said >= SAY_EVERY:
            self._said = now
            say(f"{self._ended} of {self._total} ended" + (f"; {doing}" if doing else ""))

    def _show(self, fraction: float, doing: str) -> None:
        if self._progress is not None and self._task is not None:
            count = f"{self._ended}/{self._total}" if self._total > 1 else ""
            done = min(self._total, self._ended + fraction)
            self._progress.update(self._task, completed=done, count=count, doing=escape(doing))


@contextlib.contextmanager
def _bar(total: int, quiet: bool) -> Iterator[_Bar]:
    if quiet or not people.is_terminal:
        yield _Bar(total, None, quiet)
        return
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[doing]}"),
    )
    with Progress(*columns, console=people, transient=True) as progress:
        yield _Bar(total, progress, quiet)


async def _narrate(client: AsyncClient, left: Mapping[str, object], bar: _Bar, quiet: bool) -> None:
    """Show the steps of the first few requests, and say when no worker is running."""
    loop = asyncio.get_running_loop()
    start, hinted = loop.time(), quiet
    while True:
        with contextlib.suppress(Unavailable):
            if not quiet:
                bar.describe(*await _doing(client, list(left)[:FEW]), loop.time())
            if not hinted and loop.time() - start > HINT_AFTER:
                hinted = True
                if not await workers_alive(client.store):
                    people.print(
                        "[yellow]no worker is running; start one with:[/] "
                        f"dreamdrop worker --store {escape(client.name)}",
                        soft_wrap=True,
                    )
        await asyncio.sleep(LOOK_S3 if client.store.is_remote else LOOK)


async def _doing(client: AsyncClient, ids: Sequence[str]) -> tuple[float, str]:
    """How much of these requests is done, in requests; and the steps of the first, in words."""
    reports = await asyncio.gather(*(read_progress(client.store, id) for id in ids))
    drawn = [report for report in reports if report and report.steps_total]
    fraction = sum(report.steps_done / report.steps_total for report in drawn)
    names = len(ids) > 1  # of a single request, the user knows which it is
    steps = [f"{p.id + ' ' if names else ''}{p.steps_done}/{p.steps_total}{_left(p)}" for p in drawn]
    more = f" and {len(steps) - SHOWN} more" if len(steps) > SHOWN else ""
    return fraction, ", ".join(steps[:SHOWN]) + more or ("waiting for a worker" if not any(reports) else "")


def _left(progress: RequestProgress) -> str:
    """The time that remains, if the worker has reported it."""
    return f", about {math.ceil(progress.eta)} s left" if progress.eta else ""


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
                escape(names.get(result.id, result.id)), _coloured(result.status), escape(why(result.failure))
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
        text = escape(row.found) + (f"\n[bold]→[/] {escape(row.fix)}" if row.fix else "")
        table.add_row(f"[{_SIGNAL[row.status]}]{row.status}[/]", escape(row.check), text)
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
        table.add_row(row.message.id, str(row.message.receives), escape(row.what), escape(row.why))
    return table


def states(rows: Iterable[State]) -> Table:
    """A table of single requests; the columns that none of them fills are left out."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    names = ("request", "status", "prompt", "ended", "took", "about")
    lines = [
        (state.id, state.status, _prompt(state), _age(state.result), _took(state.result), about(state))
        for state in rows
    ]
    used = [i for i, name in enumerate(names) if name == "about" or any(line[i] for line in lines)]
    for i in used:
        table.add_column(
            names[i], overflow="fold" if names[i] == "request" else "ellipsis", no_wrap=names[i] != "about"
        )
    for line in lines:
        table.add_row(*(_coloured(line[i]) if names[i] == "status" else escape(line[i]) for i in used))
    return table


def _prompt(state: State) -> str:
    text = " ".join(str(state.result.parameters.get("prompt") or "").split()) if state.result else ""
    return text if len(text) <= PROMPT else text[: PROMPT - 1] + "…"


def _age(result: Result | None) -> str:
    """How long ago a request ended, by this machine's clock."""
    if result is None or not result.finished_at:
        return ""
    try:
        ended = datetime.fromisoformat(result.finished_at)
    except ValueError:
        return ""
    seconds = (datetime.now(UTC) - (ended if ended.tzinfo else ended.replace(tzinfo=UTC))).total_seconds()
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    size, unit = next(((s, u) for s, u in units if seconds >= s), (1, "s"))
    return f"{max(0, seconds) // size:.0f} {unit} ago"


def _took(result: Result | None) -> str:
    return f"{result.timings.total:.1f} s" if result is not None and result.timings is not None else ""


def about(state: State) -> str:
    """How far a request is, or what came of it, in a line."""
    if state.result is not None:
        result = state.result
        if result.batch is not None:
            counts = result.batch.counts
            return f"{counts.succeeded} of {counts.total} rows succeeded" + _also(why(result.failure))
        return f"{len(result.images)} image{'s' * (len(result.images) != 1)}" + _also(why(result.failure))
    if state.progress is not None and state.progress.steps_total:
        progress = state.progress
        return (
            f"step {progress.steps_done} of {progress.steps_total}, "
            f"image {min(progress.images_done + 1, progress.images_total)} of {progress.images_total}{_left(progress)}"
        )
    if state.position is not None:
        return f"{state.position} ahead of it"
    return ""


def overview(store: Overview) -> Group:
    """A store's counts and a table of its requests."""
    some = f" (the newest {len(store.latest)} below)" if len(store.latest) < store.over else ""
    counts = (
        f"{len(store.queued)} queued, {len(store.processing)} processing, {store.over} ended{some}; "
        f"{store.workers} worker{'s' * (store.workers != 1)}"
    )
    rows = [State(id, "queued") for id in store.queued[:20]]
    rows += [State(id, "processing", progress=p) for id, p in list(store.processing.items())[:20]]
    rows += [State(result.id, result.status, result=result) for result in store.latest]
    return Group(counts, states(rows)) if rows else Group(counts)


def _also(text: str) -> str:
    return f"; {text}" if text else ""


def _coloured(status: str) -> str:
    return f"[{COLOURS[status]}]{status}[/]" if status in COLOURS else status
