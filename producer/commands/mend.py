"""`retry` and `dead-letters`: commands for requests and messages that failed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.stores.s3_location import S3Location
from producer.commands.look import Id, id_of, with_client
from producer.commands.session import (
    DEFAULT_STORE,
    FAILED,
    OK,
    AsJson,
    QueueUrl,
    StoreUrl,
    print_json,
    run,
    say,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from producer.checks.dead_letters import Box, DeadLetter
    from producer.client import AsyncClient

dead_letters = typer.Typer(
    help="Look at messages that nobody could use, and put them back.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
LetterId = Annotated[str, typer.Argument(metavar="ID", help="The message's id, or the beginning of it.")]


def retry(
    id: Id,
    store: StoreUrl = DEFAULT_STORE,
    queue: QueueUrl = None,
    as_json: AsJson = False,
) -> None:
    """Submit again a request that did not succeed.

    The retry gets a new id, because results are written once. Of a batch, only the rows that did not succeed
    are submitted again.
    """
    id = id_of(id, store)

    async def work(client: AsyncClient) -> None:
        from schemas.errors import Rejected

        try:
            retry = await client.retry(id, queue=queue[-1] if queue else None)
        except Rejected as error:
            text = f"{id} would fail again; correct the request and submit it: {error.message}"
            raise Rejected(
                error.code, text, field=error.field, line=error.line, column=error.column
            ) from error
        if as_json:
            print_json({"id": retry.id, "of": id, "was": retry.was, "submitted": retry.ticket is not None})
            return
        if retry.ticket is None:
            say(f"{id} was retried already: see {retry.id}")
        else:
            say(f"{id} ended as {retry.was}; its result stays, and the retry has a new id")
        typer.echo(retry.id)

    run(with_client(store, as_json, work), as_json=as_json)


@dead_letters.command("list")
def list_(queue: QueueUrl = None, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the messages, and why nobody could use them."""
    letters = run(_letters(queue, store), as_json=as_json)
    if as_json:
        print_json({"messages": [_document(letter) for letter in letters]})
        return
    from rich.console import Console

    from producer.checks.dead_letters import MOST
    from producer.commands.show import dead_letters

    Console().print(dead_letters(letters))
    if len(letters) >= MOST:
        say(f"only the first {MOST:,} messages were read")


@dead_letters.command()
def show(
    id: LetterId, queue: QueueUrl = None, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False
) -> None:
    """Show one message with its whole text."""

    async def work() -> DeadLetter:
        from producer.checks.dead_letters import find

        return find(await _letters(queue, store), id)

    letter = run(work(), as_json=as_json)
    if as_json:
        print_json(_document(letter) | {"body": letter.message.body})
        return
    times = letter.message.receives
    say(
        f"{letter.what}; received {times} time{'s' * (times != 1)}"
        + (f"; {letter.why}" if letter.why else "")
    )
    typer.echo(_pretty(letter.message.body))


@dead_letters.command("retry")
def retry_letters(
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="The message's id, or the beginning of it.")
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Put back all of them.")] = False,
    queue: QueueUrl = None,
    store: StoreUrl = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Put one message back into its queue, or all of them."""
    if (id is None) == (not all):
        raise typer.BadParameter("give the id of a message, or --all")
    back, doubled = run(_put_back(queue, store, id), as_json=as_json)
    if as_json:
        print_json({"put_back": [letter.message.id for letter in back], "doubled": doubled})
    else:
        for letter in back:
            note = (
                "; it could not be deleted here, so it exists twice" if letter.message.id in doubled else ""
            )
            say(f"{letter.message.id} is back in its queue{note}")
        if not back:
            say("there are no dead letters")
    raise typer.Exit(FAILED if doubled else OK)


async def _letters(queues: list[str] | None, store: str) -> list[DeadLetter]:
    return [letter async for box in _boxes(queues, store) for letter in box.letters]


async def _put_back(
    queues: list[str] | None, store: str, id: str | None
) -> tuple[list[DeadLetter], list[str]]:
    """(the messages that are back, the ids of those that could not be deleted)."""
    from producer.checks.dead_letters import find

    exact = None if id is None else find(await _letters(queues, store), id).message.id
    back: list[DeadLetter] = []
    doubled: list[str] = []
    async for box in _boxes(queues, store):
        letters = [letter for letter in box.letters if exact in (None, letter.message.id)]
        sent, stayed = await box.put_back(letters)
        back += sent
        doubled += [letter.message.id for letter in stayed]
    return back, doubled


async def _boxes(queues: list[str] | None, store: str) -> AsyncIterator[Box]:
    """Each queue's dead letters; those of queues that share a dead-letter queue once."""
    from producer.checks.dead_letters import look

    if not queues:
        raise typer.BadParameter("name the workers' queue with --queue or DREAMDROP_QUEUE")
    location = S3Location.of(store)
    seen: set[str] = set()
    for url in queues:
        async with look(url, location.bucket if location else "") as box:
            if box.dead.url not in seen:
                seen.add(box.dead.url)
                yield box


def _document(letter: DeadLetter) -> dict[str, Any]:
    message = letter.message
    return {
        "id": message.id,
        "receives": message.receives,
        "what": letter.what,
        "why": letter.why,
        "request": letter.request,
        "bytes": len(message.body.encode()),
    }


def _pretty(text: str) -> str:
    """JSON indented, anything else as it is."""
    from producer.checks.dead_letters import printable

    try:
        return printable(json.dumps(json.loads(text), ensure_ascii=False, indent=2))
    except (ValueError, RecursionError):
        return printable(text)
