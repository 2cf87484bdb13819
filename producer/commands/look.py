"""`status`, `watch`, `fetch` and `cancel`: commands that look at requests, and at trainings.

An id is looked for among the requests, then among the trainings.
"""

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
    from producer.trainings.finding import Found

AnyId = Annotated[
    str | None,
    typer.Argument(
        metavar="[ID]",
        help="The id of a request, else of a training, or the path of a dropped file; by default the whole store.",
    ),
]
Id = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="The id of a request, else of a training, or the path of the dropped file."
    ),
]


def status(id: AnyId = None, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show a request, a training, or what is in the store."""
    id = None if id is None else id_of(id, store)
    run(with_client(store, as_json, lambda client: _status(client, id, as_json)), as_json=as_json)


def watch(
    id: AnyId = None,
    store: StoreUrl = DEFAULT_STORE,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Follow a request or a training until it ends, or the store.

    The store is followed until Ctrl-C. With --json it prints a line for each change.
    """
    from producer.commands import watching

    id = None if id is None else id_of(id, store)
    raise typer.Exit(
        run(
            with_client(store, as_json, lambda client: watching.follow(client, id, interval, as_json)),
            as_json=as_json,
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

    For a batch, save the images of all rows and the gallery page; for a training, its report page and the
    validation pictures.
    """
    id = id_of(id, store)

    async def work(client: AsyncClient) -> int:
        from producer.errors import StillWorking

        found = await located(client, id, as_json)
        result = found.state.result
        if result is None:
            raise StillWorking([found.state.id], 0)
        require_folder(out)
        paths = await _save(found, out)
        if as_json:
            print_json({"id": result.id, "status": result.status, "saved": [str(path) for path in paths]})
            return OK
        for path in paths:
            typer.echo(path)
        if not paths:
            from producer.commands.show import why

            lacks = "no report" if found.is_training else "no images"
            say(f"{id} has {lacks} (status: {result.status}); {why(result.failure)}".rstrip("; "))
        return OK if paths else 1

    raise typer.Exit(run(with_client(store, as_json, work), as_json=as_json))


def cancel(id: Id, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Cancel a request or a training.

    For a batch, cancel also its open rows.
    """
    id = id_of(id, store)

    async def work(client: AsyncClient) -> int:
        found = await located(client, id, as_json)
        before = found.state
        state = before if before.over else await found.client.cancel(before.id if found.is_training else id)
        print_source(before)
        if as_json:
            print_json(document(found, state) | {"was_over": before.over})
        elif before.over:
            say(f"{before.id} had ended already: {state.status}")
        elif state.status == "canceled":
            note = state.result.failure.message if state.result and state.result.failure else ""
            say(f"{before.id} is canceled" + (note and f": {note}" if "claim" in note else ""))
        else:
            say(f"{before.id} ended before it could be canceled: {state.status}")
        return OK

    raise typer.Exit(run(with_client(store, as_json, work), as_json=as_json))


def id_of(text: str, store: str) -> str:
    """The id that a user means, who gives an id or the path of a dropped file.

    Args:
        text: what they wrote. A path counts from the store, from its inbox, or from the current directory.
        store: the store's URL.
    """
    from schemas.layout import BATCH, EXPRESS, REQUESTS, SINGLE, is_id, request_id

    if "://" not in store and not text.startswith(REQUESTS) and text.lower().endswith((SINGLE, BATCH)):
        inbox, file = Path(store, REQUESTS).expanduser().resolve(), Path(text).expanduser().resolve()
        text = REQUESTS + file.relative_to(inbox).as_posix() if file.is_relative_to(inbox) else text
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


async def located(client: AsyncClient, id: str, as_json: bool) -> Found:
    """What an id stands for; tells people where both a request and a training have it."""
    from producer.trainings.finding import find

    found = await find(client, id)
    if found.also_training and not as_json:
        say(f"this is the request {found.state.id}; a training has the id, too: trainings/{found.state.id}")
    return found


async def _save(found: Found, out: Path) -> list[Path]:
    from infra.claims.trainings import TrainingStore
    from producer.trainings import report

    store = found.client.store
    if isinstance(store, TrainingStore):
        return await report.save(store, found.state.id, out)
    return await found.client.fetch(found.state.id, out)


async def _status(client: AsyncClient, id: str | None, as_json: bool) -> None:
    from rich.console import Console

    from producer.request_state import namesakes

    if id is None:
        glance = await known(client)
        if as_json:
            print_json(overview_document(*glance))
        else:
            Console().print(await tables(client, *glance))
        return
    found = await located(client, id, as_json)
    state = found.state
    if as_json:
        print_json(document(found, state))
    else:
        print_source(state)
        Console().print(await table(found, state))
        others = await namesakes(found.client.store, state.id) if state.over else []
        if others:
            what = "training" if found.is_training else "request"
            say(f"another {what} was dropped under this name; see {', '.join(others)}")


async def known(client: AsyncClient) -> tuple[Overview, Overview]:
    """The store at a glance: its requests, and its trainings."""
    from producer.trainings.finding import trainings_of

    return await client.known(), await trainings_of(client).known()


async def tables(client: AsyncClient, requests: Overview, trainings: Overview) -> Any:
    """A store at a glance as tables."""
    from rich.console import Group

    from producer.commands import show
    from producer.commands.trainings import section
    from producer.trainings.finding import trainings_of

    return Group(
        show.overview(requests, await _asked(client, show.opened(requests))),
        section(trainings, await _asked(trainings_of(client), show.opened(trainings))),
    )


async def table(found: Found, state: State) -> Any:
    """The state of a request or a training as a table."""
    from producer.commands import show, trainings

    asked = await _asked(found.client, [] if state.over else [state.id])
    return trainings.table([state], asked) if found.is_training else show.states([state], asked)


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


def print_source(state: State) -> None:
    """Say which file has this id in its body, when its path is another name."""
    if state.source:
        say(f"{state.source} has the id {state.id}: its result will be stored under that id")


def document(found: Found, state: State) -> dict[str, Any]:
    """The state of a request or a training as JSON."""
    document: dict[str, Any] = {"id": state.id, "status": state.status}
    if found.is_training:
        document["kind"] = "training"
    if found.also_training:
        document["also_training"] = True
    if state.source:
        document["source"] = state.source
    if state.position is not None:
        document["position"] = state.position
    if state.progress is not None:
        document["progress"] = state.progress.model_dump(mode="json")
    if state.result is not None:
        document["result"] = state.result.model_dump(mode="json", exclude={"request"})
    return document


def overview_document(overview: Overview, trainings: Overview) -> dict[str, Any]:
    """A store at a glance as JSON."""
    from producer.commands import trainings as of_trainings

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
        "trainings": of_trainings.document(trainings),
    }
