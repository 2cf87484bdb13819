"""`watch`: shows the changes of a request, a training or a whole store."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import typer
from rich.live import Live

from producer.commands import look, show, trainings
from producer.commands.progress import NowAndThen
from producer.commands.session import OK

if TYPE_CHECKING:
    from producer.client import AsyncClient


@dataclass(frozen=True, slots=True)
class Look:
    """What one look has found."""

    document: dict[str, Any]
    text: str  # a line for people
    news: str  # what is said at once when it changes
    table: Callable[[], Awaitable[Any]]
    ended: str = ""  # how it ended; "" while it has not


async def follow(client: AsyncClient, id: str | None, interval: float, as_json: bool) -> int:
    """Show changes until the request ends. Returns the exit code: for a request, how it ended.

    On a terminal a table that is drawn again; without one, a line when the status changes and now and then.
    """
    last = ""
    lines = NowAndThen()
    live = not as_json and show.people.is_terminal
    screen = Live(console=show.people, auto_refresh=False) if live else None
    looks = _looks_at_store(client) if id is None else _looks_at(client, id, as_json)
    with screen or contextlib.nullcontext():
        async for one in looks:
            line = json.dumps(one.document)
            if as_json and line != last:
                typer.echo(line)
            elif screen is not None:
                screen.update(await one.table(), refresh=True)
            elif not as_json:
                lines.say(one.text, one.news)
            last = line
            if one.ended:
                return OK if one.ended == "succeeded" else 1
            await asyncio.sleep(interval)
    return OK


async def _looks_at(client: AsyncClient, id: str, as_json: bool) -> AsyncIterator[Look]:
    found = await look.located(client, id, as_json)
    state = found.state
    look.print_source(state)
    describe = trainings.about if found.is_training else show.about
    while True:
        about = describe(state)
        yield Look(
            look.document(found, state),
            f"{state.id}: {state.status}" + (about and f", {about}"),
            state.status,
            partial(look.table, found, state),
            state.status if state.over else "",
        )
        state = await found.again()


async def _looks_at_store(client: AsyncClient) -> AsyncIterator[Look]:
    while True:
        requests, of_trainings = await look.known(client)
        text = show.counts(requests)
        if trainings.is_worth_a_line(of_trainings):
            text += f"; {trainings.counts(of_trainings)}"
        yield Look(
            look.overview_document(requests, of_trainings),
            text,
            "",
            partial(look.tables, client, requests, of_trainings),
        )
