"""Bars that follow requests until they end, and files that are copied; lines where there is no terminal."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from producer.commands.session import say
from producer.commands.show import people, remaining
from producer.errors import StillWorking
from producer.request_state import read_progress, workers_alive
from schemas.errors import Unavailable

if TYPE_CHECKING:
    from producer.client import AsyncClient
    from producer.requests import Ticket
    from schemas.result import Result

HINT_AFTER = 3.0  # seconds without a worker before a hint is printed
LOOK, LOOK_S3 = 0.5, 2.0  # seconds between two reads of the progress of single requests
FEW = 8  # requests whose steps are looked at
SHOWN = 2  # and written out: more would leave no room for the bar
SAY_EVERY = 30.0  # seconds between two lines without a terminal


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


class NowAndThen:
    """Says lines where there is no terminal: those with news at once, others every half a minute if they changed."""

    def __init__(self) -> None:
        self._news: str | None = None
        self._text, self._at = "", 0.0

    def say(self, text: str, news: str) -> None:
        """Say a line, or not.

        Args:
            news: what is said at once when it changes.
        """
        now = time.monotonic()
        if news != self._news or (text != self._text and now - self._at >= SAY_EVERY):
            say(text)
            self._news, self._text, self._at = news, text, now


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
    steps = [f"{p.id + ' ' if names else ''}{p.steps_done}/{p.steps_total}{remaining(p)}" for p in drawn]
    more = f" and {len(steps) - SHOWN} more" if len(steps) > SHOWN else ""
    return fraction, ", ".join(steps[:SHOWN]) + more or ("waiting for a worker" if not any(reports) else "")


@contextlib.contextmanager
def copying(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each file that is copied; without a terminal a line for each. The function is told how far it is.

    Its arguments are a file's path, the bytes that are copied, and its size.
    """
    seen: dict[str, TaskID] = {}
    if quiet or not people.is_terminal:

        def tell(path: str, done: int, size: int) -> None:
            if path not in seen and not quiet:
                say(f"{path} ({size:,} bytes)")
            seen[path] = TaskID(0)

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=people, transient=True) as progress:

        def show(path: str, done: int, size: int) -> None:
            if path not in seen:
                seen[path] = progress.add_task(escape(path), total=size)
            progress.update(seen[path], completed=done)

        yield show
