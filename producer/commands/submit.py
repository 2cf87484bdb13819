"""`dreamdrop submit` and `dreamdrop imagine`: drop requests, and wait for their pictures if asked to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.gather import gather_bounded
from producer.commands.session import (
    DEFAULT_STORE,
    FAILED,
    OK,
    AsJson,
    QueueUrl,
    StoreUrl,
    Timeout,
    code_of,
    print_error,
    print_json,
    reporting_errors,
    require_folder,
    run,
    say,
)

if TYPE_CHECKING:
    from producer.client import AsyncClient
    from producer.input_files import Item
    from producer.requests import Ticket
    from schemas.result import Result


def submit(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Requests (.json), batches (.jsonl), tables (.csv), prompts (.txt, one a line), folders, "
            "patterns, or - for standard input. The header of a table names fields: prompt, steps, seed, ...",
        ),
    ],
    store: StoreUrl = DEFAULT_STORE,
    queue: QueueUrl = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all have ended, with a progress bar.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Wait, and save the images in this folder.")
    ] = None,
    id: Annotated[str | None, typer.Option(help="The request's id; by default a new one.")] = None,
    express: Annotated[
        bool, typer.Option("--express", help="Use the express lane, which workers look at first.")
    ] = False,
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="How many are sent or saved at once.")
    ] = 16,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Submit files of requests.

    Everything is checked first. If there is a fault in any file, nothing is sent.

    With --queue each request becomes a message. A request that a message cannot carry is dropped into the
    store, and the message refers to it.

    Requests are checked against the limits that workers read, too: DREAMDROP_MAX_STEPS, DREAMDROP_MAX_SIDE,
    DREAMDROP_MAX_IMAGES and DREAMDROP_MAX_BODY_MB.
    """
    from infra.limits_env import limits_from
    from producer.input_files import gather

    with reporting_errors(as_json=as_json):
        items = gather(files, id=id, limits=limits_from())
    lane = queue[0 if express else -1] if queue else None
    submission = Submission(
        store, items, wait or out is not None, out, express, concurrency, timeout, as_json, queue=lane
    )
    raise typer.Exit(run(submission.run(), as_json=as_json))


@dataclass(slots=True)
class Submission:
    """One run of `submit`: send, wait, save, print."""

    store: str
    items: list[Item]
    wait: bool
    out: Path | None  # where images go; None: they stay in the store
    express: bool
    concurrency: int  # how many are sent or saved at once
    timeout: float | None  # seconds
    as_json: bool
    flat: bool = False  # save all in one folder, not in a folder for each request
    queue: str | None = None  # send there, not into the store

    async def run(self) -> int:
        """Run it. Returns the exit code."""
        from producer.client import AsyncClient

        if self.out is not None:
            require_folder(self.out)
        async with AsyncClient(self.store) as client:
            tickets = await self._send(client)
            if not self.wait:
                self._print_ids(tickets)
                return OK
            if self.out is None and not self.as_json:
                self._print_ids(tickets)  # before waiting, so that they are known if the user presses Ctrl-C
            try:
                return await self._collect(client, tickets)
            except asyncio.CancelledError:  # Ctrl-C
                self._say_what_goes_on(tickets)
                raise

    def _say_what_goes_on(self, tickets: list[Ticket]) -> None:
        ids = [ticket.id for ticket in tickets]
        what = ids[0] if len(ids) == 1 else f"{len(ids)} requests, {ids[0]} to {ids[-1]}"
        store = "" if self.store == DEFAULT_STORE else f" --store {self.store}"
        say(
            f"\nleft running as {what}; `dreamdrop cancel ID{store}` ends one, "
            f"`dreamdrop fetch ID{store}` saves its pictures"
        )

    async def _send(self, client: AsyncClient) -> list[Ticket]:
        if self.queue is not None:
            return await self._send_to(self.queue, client)

        async def send(item: Item) -> Ticket:
            drop = client.submit_batch if item.batch else client.submit
            return await drop(item.body, id=item.id, express=self.express)

        return await gather_bounded(self.items, self.concurrency, send)

    async def _send_to(self, queue: str, client: AsyncClient) -> list[Ticket]:
        single = [item for item in self.items if not item.batch]
        id = single[0].id if single else None
        sent = iter(await client.send([item.body for item in single], queue=queue, id=id))

        async def send(item: Item) -> Ticket:
            return await client.send_batch(item.body, queue=queue, id=item.id)

        batch_items = [item for item in self.items if item.batch]
        batches = iter(await gather_bounded(batch_items, self.concurrency, send))
        return [next(batches if item.batch else sent) for item in self.items]

    def _print_ids(self, tickets: list[Ticket]) -> None:
        if self.as_json:
            print_json({"requests": [_request(i, t) for i, t in zip(self.items, tickets, strict=True)]})
            return
        for ticket in tickets:
            typer.echo(ticket.id)

    async def _collect(self, client: AsyncClient, tickets: list[Ticket]) -> int:
        """Wait for the requests, save their images and print what came of them. Returns the exit code."""
        from producer.commands import progress, show
        from producer.input_files import row_ids

        rows = {t.id: row_ids(i, t.id) for i, t in zip(self.items, tickets, strict=True) if i.batch}
        ended, late = await progress.follow(client, tickets, rows, timeout=self.timeout, quiet=self.as_json)
        results = [_result_of(ticket.id, ended) for ticket in tickets]
        saved = await self._save(client, [result for result in results if result is not None])
        if self.as_json:
            requests = zip(self.items, tickets, results, strict=True)
            print_json({"requests": [_request(i, t) | _outcome(r, saved) for i, t, r in requests]})
        else:
            for path in [path for paths in saved.values() for path in paths]:
                typer.echo(path)
            names = {} if self.flat else {t.id: i.name for i, t in zip(self.items, tickets, strict=True)}
            show.summary([r for r in ended.values() if not _is_summed_up_by_rows(r, rows)], names)
            if self.out is None and any(result is not None for result in results):
                place = f"{self.store.rstrip('/')}/results/"
                say(f"the pictures are in {place}; `dreamdrop fetch ID -o FOLDER` saves those of one id")
        if late is None:
            return OK if all(r is not None and r.status == "succeeded" for r in results) else FAILED
        if not self.as_json:
            print_error(late, as_json=False)
        return code_of(late)

    async def _save(self, client: AsyncClient, results: list[Result]) -> dict[str, list[Path]]:
        if self.out is None:
            return {}
        from producer import collect

        out = self.out

        async def save(result: Result) -> list[Path]:
            return await collect.save(client.store, result, out, flat=self.flat)

        saved = await gather_bounded(results, self.concurrency, save)
        return {result.id: paths for result, paths in zip(results, saved, strict=True)}


def _result_of(id: str, ended: dict[str, Result]) -> Result | None:
    """A request's result; where another body had its id first, it is under `<id>~<hash>`."""
    return ended.get(id) or next((r for r in ended.values() if r.id.startswith(f"{id}~")), None)


def _is_summed_up_by_rows(result: Result, rows: dict[str, list[str]]) -> bool:
    """Whether a batch's own result adds nothing to those of its rows. If it failed as a whole, it does."""
    return result.id in rows and (result.batch is not None or not rows[result.id])


def _request(item: Item, ticket: Ticket) -> dict[str, Any]:
    return {"name": item.name, "id": ticket.id, "key": ticket.key or None}


def _outcome(result: Result | None, saved: dict[str, list[Path]]) -> dict[str, Any]:
    """A request's result for programs, with the paths of its saved images."""
    if result is None:
        return {"status": None}
    outcome: dict[str, Any] = {"id": result.id, "status": result.status}
    outcome["images"] = [image.model_dump(mode="json") for image in result.images]
    if result.id in saved:
        outcome["saved"] = [str(path) for path in saved[result.id]]
    if result.failure is not None:
        outcome["failure"] = result.failure.model_dump(mode="json", exclude_none=True)
    if result.warnings:
        outcome["warnings"] = [note.model_dump(mode="json", exclude_none=True) for note in result.warnings]
    if result.batch is not None:
        outcome["counts"] = result.batch.counts.model_dump(mode="json")
    return outcome


def imagine(
    words: Annotated[
        list[str], typer.Argument(metavar="PROMPT", help="What to draw; quotes are not needed.")
    ],
    store: StoreUrl = DEFAULT_STORE,
    number: Annotated[
        int, typer.Option("--number", "-n", metavar="N", min=1, help="How many images; image k has seed + k.")
    ] = 1,
    size: Annotated[
        str | None, typer.Option(metavar="PIXELS", help="Size in pixels, such as 512 or 768x512.")
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="By default the model's own.")] = None,
    cfg: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Guidance; by default the model's own.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="By default random, and recorded.")] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What to avoid.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A model's name; see `dreamdrop models`.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="NAME", help="A sampler, such as DDIM or 'Euler a'.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A picture to start from; repeat it for a model that edits several."
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --image: the mask; its white part is redrawn.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="With --image: how much to change it, from 0 to 1.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to save in.")] = Path(),
    express: Annotated[bool, typer.Option(help="Use the express lane, which workers look at first.")] = True,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Draw one prompt and save the pictures.

    Waits until they are drawn, and prints their paths.
    """
    from producer import bulk
    from producer.input_files import Item

    document: dict[str, Any] = {"prompt": " ".join(words), "number_of_images": number}
    optional = {
        "negative_prompt": negative,
        "cfg_scale": cfg,
        "steps": steps,
        "seed": seed,
        "model": model,
        "scheduler": scheduler,
        "strength": strength,
    }
    document |= {name: value for name, value in optional.items() if value is not None}
    with reporting_errors(as_json=as_json):
        document |= sized(size) | bulk.pictures(image or [], mask)
        item = Item("imagine", False, checked(document), None)
    submission = Submission(store, [item], True, out, express, 16, timeout, as_json, flat=True)
    raise typer.Exit(run(submission.run(), as_json=as_json))


def sized(text: str | None) -> dict[str, int]:
    """`512` or `768x512` as manifest fields. Raises `Rejected`."""
    from schemas.errors import Rejected

    if text is None:
        return {}
    width, times, height = text.lower().replace("×", "x").partition("x")
    if not (width.isdecimal() and (height.isdecimal() if times else True)):
        raise Rejected(
            "invalid_manifest",
            f"--size is {text!r}; it should be pixels, such as 512 or 768x512",
            field="width",
        )
    return {"width": int(width), "height": int(height if times else width)}


def checked(document: dict[str, Any]) -> bytes:
    """A document as bytes, checked as a worker checks it. Raises `Rejected`."""
    import json

    from schemas.manifest import validate_manifest

    validate_manifest(document)
    return json.dumps(document, ensure_ascii=False).encode()
