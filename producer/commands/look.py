"""`status`, `watch`, `fetch`, `cancel`, `models`: look at what was submitted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producer.commands.session import (
    DEFAULT_STORE,
    OK,
    AsJson,
    StoreUrl,
    existing,
    print_json,
    run,
    say,
    spoken,
)

if TYPE_CHECKING:
    from producer.client import AsyncClient
    from producer.overview import Overview
    from producer.request_state import State

AnyId = Annotated[
    str | None, typer.Argument(metavar="[ID]", help="One request; without it, the whole store.")
]
Id = Annotated[
    str, typer.Argument(metavar="ID", help="As `submit` printed it, or the path of the dropped file.")
]


def status(id: AnyId = None, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """How far a request is, or what the store holds."""
    id = None if id is None else named(id)
    run(with_client(store, as_json, lambda client: _status(client, id, as_json)), as_json=as_json)


def watch(
    id: AnyId = None,
    store: StoreUrl = DEFAULT_STORE,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Follow a request until it is over, or the store until Ctrl-C. With --json: a line for each change."""
    id = None if id is None else named(id)
    raise typer.Exit(
        run(
            with_client(store, as_json, lambda client: _watch(client, id, interval, as_json)), as_json=as_json
        )
    )


def fetch(
    id: Id,
    store: StoreUrl = DEFAULT_STORE,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Save below this folder, as <id>/0.png and so on.")
    ] = Path(),
    as_json: AsJson = False,
) -> None:
    """Save the images of a request that is over; of a batch, all rows' and its gallery page."""
    id = named(id)

    async def work(client: AsyncClient) -> int:
        result = await client.result(id)
        paths = await client.fetch(id, out)
        if as_json:
            print_json({"id": id, "status": result.status, "saved": [str(path) for path in paths]})
            return OK
        for path in paths:
            typer.echo(path)
        if not paths:
            from producer.commands.show import why

            say(f"{id} {result.status} and left no images; {why(result.failure)}".rstrip("; "))
        return OK if paths else 1

    raise typer.Exit(run(with_client(store, as_json, work), as_json=as_json))


def cancel(id: Id, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Cancel a request; of a batch, also its rows that are not over."""
    id = named(id)

    async def work(client: AsyncClient) -> int:
        was = await client.find(id)
        state = was if was.over else await client.cancel(id)
        _tell_source(was)
        if as_json:
            print_json(_document(state) | {"was_over": was.over})
        elif was.over:
            say(
                f"{was.id} is over already: it {state.status}"
                if state.status != "partial"
                else f"{was.id} is over already"
            )
        elif state.status == "canceled":
            say(f"{was.id} is canceled")
        else:
            say(f"{was.id} was over first: {state.status}")
        return OK

    raise typer.Exit(run(with_client(store, as_json, work), as_json=as_json))


def models(store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """The models that live workers announce, and the fine-tuned ones in the store."""

    async def work(client: AsyncClient) -> None:
        found = await client.models()
        if as_json:
            rows = [{"name": m.name, "workers": m.workers, "versions": list(m.versions)} for m in found]
            print_json({"models": rows})
            return
        for model in found:
            where = [f"{model.workers} worker{'s' * (model.workers != 1)}"] if model.workers else []
            where += [f"in the store: {', '.join(model.versions)}"] if model.versions else []
            typer.echo(f"{model.name}\t{'; '.join(where)}")
        if not any(model.workers for model in found):
            say(f"no worker has announced itself; start one with: dreamdrop worker --store {store}")

    run(with_client(store, as_json, work), as_json=as_json)


def named(text: str) -> str:
    """The id that a user means: an id, or the path of a dropped file."""
    from schemas.layout import BATCH, EXPRESS, REQUESTS, SINGLE, is_id, request_id

    path = text.removeprefix(EXPRESS).removeprefix(REQUESTS)
    if is_id(path) and not path.endswith((SINGLE, BATCH)):
        return path
    return request_id(REQUESTS + path + ("" if path.lower().endswith((SINGLE, BATCH)) else SINGLE))


async def with_client(store: str, as_json: bool, work: Any) -> Any:
    """Do something with a client of a store that is there."""
    with spoken(as_json=as_json):
        existing(store)
    from producer.client import AsyncClient

    async with AsyncClient(store) as client:
        return await work(client)


async def _status(client: AsyncClient, id: str | None, as_json: bool) -> None:
    from rich.console import Console

    from producer.commands import show
    from producer.request_state import namesakes

    if id is None:
        found = await client.known()
        if as_json:
            print_json(_overview(found))
        else:
            Console().print(show.overview(found))
        return
    state = await client.find(id)
    if as_json:
        print_json(_document(state))
    else:
        _tell_source(state)
        Console().print(show.states([state]))
        others = await namesakes(client.store, state.id) if state.over else []
        if others:
            say(f"another request was dropped under this name: see {', '.join(others)}")


async def _watch(client: AsyncClient, id: str | None, interval: float, as_json: bool) -> int:
    """Look again and again. Returns the exit code: of one request, how it ended."""
    import asyncio
    import contextlib
    import json

    from rich.live import Live

    from producer.commands import show

    said = ""
    screen = Live(console=show.people, auto_refresh=False) if not as_json else None
    with screen or contextlib.nullcontext():
        while True:
            if id is None:
                found = await client.known()
                line, over, ok = json.dumps(_overview(found)), False, True
            else:
                state = await client.find(id)
                if state.id != id:
                    _tell_source(state)
                    id = state.id
                line, over, ok = json.dumps(_document(state)), state.over, state.status == "succeeded"
            if as_json and line != said:
                typer.echo(line)
            elif screen is not None:
                screen.update(show.overview(found) if id is None else show.states([state]), refresh=True)
            said = line
            if over:
                return OK if ok else 1
            await asyncio.sleep(interval)


def _tell_source(state: State) -> None:
    """Which file asked for this id, when that is another name."""
    if state.source:
        say(f"{state.source} asks under the id {state.id}: its result will be found by that name")


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


def _overview(found: Overview) -> dict[str, Any]:
    return {
        "counts": {
            "queued": len(found.queued),
            "processing": len(found.processing),
            "over": found.over,
            "workers": found.workers,
        },
        "queued": list(found.queued),
        "processing": {id: p.model_dump(mode="json") if p else None for id, p in found.processing.items()},
        "latest": [{"id": r.id, "status": r.status, "images": len(r.images)} for r in found.latest],
    }
