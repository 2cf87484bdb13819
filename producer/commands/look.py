"""`status`, `watch`, `fetch` and `cancel`: commands that look at requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producer.commands.session import (
    DEFAULT_STORE,
    OK,
    AsJson,
    StoreUrl,
    print_json,
    reporting_errors,
    require_folder,
    require_store,
    run,
    say,
)

if TYPE_CHECKING:
    from producer.client import AsyncClient
    from producer.overview import Asked, Overview
    from producer.request_state import State

AnyId = Annotated[
    str | None,
    typer.Argument(metavar="[ID]", help="An id, or the path of a dropped file; by default the whole store."),
]
Id = Annotated[
    str, typer.Argument(metavar="ID", help="The id that `submit` printed, or the path of the dropped file.")
]


def status(id: AnyId = None, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show how far a request is, or what is in the store."""
    id = None if id is None else id_of(id)
    run(with_client(store, as_json, lambda client: _status(client, id, as_json)), as_json=as_json)


def watch(
    id: AnyId = None,
    store: StoreUrl = DEFAULT_STORE,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Follow a request until it ends, or the store until Ctrl-C.

    With --json it prints a line for each change.
    """
    id = None if id is None else id_of(id)
    raise typer.Exit(
        run(
            with_client(store, as_json, lambda client: _watch(client, id, interval, as_json)), as_json=as_json
        )
    )


def fetch(
    id: Id,
    store: StoreUrl = DEFAULT_STORE,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder to save in, as <id>/0.png and so on.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Save the images of a request that has ended.

    For a batch, save the images of all rows and the gallery page.
    """
    id = id_of(id)

    async def work(client: AsyncClient) -> int:
        result = await client.result(id)
        require_folder(out)
        paths = await client.fetch(id, out)
        if as_json:
            print_json({"id": id, "status": result.status, "saved": [str(path) for path in paths]})
            return OK
        for path in paths:
            typer.echo(path)
        if not paths:
            from producer.commands.show import why

            say(f"{id} has no images (status: {result.status}); {why(result.failure)}".rstrip("; "))
        return OK if paths else 1

    raise typer.Exit(run(with_client(store, as_json, work), as_json=as_json))


def cancel(id: Id, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Cancel a request; for a batch, also its open rows."""
    id = id_of(id)

    async def work(client: AsyncClient) -> int:
        before = await client.find(id)
        state = before if before.over else await client.cancel(id)
        _print_source(before)
        if as_json:
            print_json(_document(state) | {"was_over": before.over})
        elif before.over:
            say(f"{before.id} had ended already: {state.status}")
        elif state.status == "canceled":
            note = state.result.failure.message if state.result and state.result.failure else ""
            say(f"{before.id} is canceled" + (note and f": {note}" if "claim" in note else ""))
        else:
            say(f"{before.id} ended before it could be canceled: {state.status}")
        return OK

    raise typer.Exit(run(with_client(store, as_json, work), as_json=as_json))


def id_of(text: str) -> str:
    """The id that a user means, who gives an id or the path of a dropped file."""
    from schemas.layout import BATCH, EXPRESS, REQUESTS, SINGLE, is_id, request_id

    path = text.removeprefix(EXPRESS).removeprefix(REQUESTS)
    if is_id(path) and not path.endswith((SINGLE, BATCH)):
        return path
    return request_id(REQUESTS + path + ("" if path.lower().endswith((SINGLE, BATCH)) else SINGLE))


async def with_client(store: str, as_json: bool, work: Any) -> Any:
    """Open a client of a store that must exist, and run the work with it."""
    with reporting_errors(as_json=as_json):
        require_store(store)
    from producer.client import AsyncClient

    async with AsyncClient(store) as client:
        return await work(client)


async def _status(client: AsyncClient, id: str | None, as_json: bool) -> None:
    from rich.console import Console

    from producer.commands import show
    from producer.request_state import namesakes

    if id is None:
        overview = await client.known()
        if as_json:
            print_json(_overview(overview))
        else:
            Console().print(show.overview(overview, await _asked(client, show.opened(overview))))
        return
    state = await client.find(id)
    if as_json:
        print_json(_document(state))
    else:
        _print_source(state)
        Console().print(show.states([state], await _asked(client, [] if state.over else [state.id])))
        others = await namesakes(client.store, state.id) if state.over else []
        if others:
            say(f"another request was dropped under this name; see {', '.join(others)}")


async def _asked(client: AsyncClient, ids: Sequence[str]) -> dict[str, Asked]:
    """What requests ask for that have not ended, by id; without those of which it cannot be told."""
    from infra.gather import gather_bounded
    from infra.stores.store import InvalidKey
    from producer import overview
    from producer.errors import Damaged

    async def one(id: str) -> Asked | None:
        try:
            return await overview.asked(client.store, id)
        except (Damaged, InvalidKey, ValueError):
            return None

    found = await gather_bounded(ids, 8, one)
    return {id: asked for id, asked in zip(ids, found, strict=True) if asked is not None}


async def _watch(client: AsyncClient, id: str | None, interval: float, as_json: bool) -> int:
    """Show changes until the request ends. Returns the exit code: for a request, how it ended.

    On a terminal a table that is drawn again; without one, a line when the status changes and now and then.
    """
    import asyncio
    import contextlib
    import json

    from rich.live import Live

    from producer.commands import show
    from producer.commands.progress import NowAndThen

    last = ""
    lines = NowAndThen()
    live = not as_json and show.people.is_terminal
    screen = Live(console=show.people, auto_refresh=False) if live else None
    with screen or contextlib.nullcontext():
        while True:
            if id is None:
                overview = await client.known()
                line, over, ok = json.dumps(_overview(overview)), False, True
            else:
                state = await client.find(id)
                if state.id != id:
                    _print_source(state)
                    id = state.id
                line, over, ok = json.dumps(_document(state)), state.over, state.status == "succeeded"
            if as_json and line != last:
                typer.echo(line)
            elif screen is not None:
                asked = await _asked(client, show.opened(overview) if id is None else [] if over else [id])
                table = show.overview(overview, asked) if id is None else show.states([state], asked)
                screen.update(table, refresh=True)
            elif not as_json:
                about = "" if id is None else show.about(state)
                text = (
                    show.counts(overview)
                    if id is None
                    else f"{id}: {state.status}" + (about and f", {about}")
                )
                lines.say(text, "" if id is None else state.status)
            last = line
            if over:
                return OK if ok else 1
            await asyncio.sleep(interval)


def _print_source(state: State) -> None:
    """Say which file has this id in its body, when its path is another name."""
    if state.source:
        say(f"{state.source} has the id {state.id}: its result will be stored under that id")


def _document(state: State) -> dict[str, Any]:
    document: dict[str, Any] = {"id": state.id, "status": state.status}
    if state.source:
        document["source"] = state.source
    if state.position is not None:
        document["position"] = state.position
    if state.progress is not None:
        document["progress"] = state.progress.model_dump(mode="json")
    if state.result is not None:
        document["result"] = state.result.model_dump(mode="json", exclude={"request"})
    return document


def _overview(overview: Overview) -> dict[str, Any]:
    return {
        "counts": {
            "queued": len(overview.queued),
            "processing": len(overview.processing),
            "over": overview.over,
            "workers": overview.workers,
        },
        "queued": list(overview.queued),
        "processing": {id: p.model_dump(mode="json") if p else None for id, p in overview.processing.items()},
        "latest": [{"id": r.id, "status": r.status, "images": len(r.images)} for r in overview.latest],
    }
