"""`dreamdrop submit` and `dreamdrop imagine`: drop requests, and perhaps wait for the pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.gather import gather_bounded
from producer.commands.session import (
    DEFAULT_STORE,
    FAILED,
    AsJson,
    QueueUrl,
    StoreUrl,
    Timeout,
    code_of,
    print_json,
    run,
    spoken,
    tell,
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
            metavar="FILES...",
            help="Requests (.json), batches (.jsonl), tables (.csv), prompts (.txt, one a line), folders, "
            "patterns, or - for standard input.",
        ),
    ],
    store: StoreUrl = DEFAULT_STORE,
    queue: QueueUrl = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until all are over, with a progress bar.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Wait, and save the images below this folder.")
    ] = None,
    id: Annotated[str | None, typer.Option(help="The request's id; by default a fresh one.")] = None,
    express: Annotated[
        bool, typer.Option("--express", help="Into the lane that workers look at first.")
    ] = False,
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="How many are sent or saved at once.")
    ] = 16,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Submit files of requests. Everything is checked first; one fault, and nothing is sent.

    With --queue each request is a message; what no message carries is dropped into the store and key_in_store to.

    How much may be asked for is read where workers read it: DREAMDROP_MAX_STEPS, DREAMDROP_MAX_SIDE,
    DREAMDROP_MAX_IMAGES and DREAMDROP_MAX_BODY_MB.
    """
    from infra.limits_env import limits_from
    from producer.input_files import gather

    with spoken(as_json=as_json):
        items = gather(files, id=id, limits=limits_from())
    lane = queue[0 if express else -1] if queue else None
    errand = Errand(
        store, items, wait or out is not None, out, express, concurrency, timeout, as_json, queue=lane
    )
    raise typer.Exit(run(errand.go(), as_json=as_json))


@dataclass(slots=True)
class Errand:
    """One `submit`: send, wait, save, tell."""

    store: str
    items: list[Item]
    wait: bool
    out: Path | None  # where images go; None: they stay in the store
    express: bool
    concurrency: int  # how many are sent or saved at once
    timeout: float | None  # seconds
    as_json: bool
    flat: bool = False  # save beside each other, not in a folder for each request
    queue: str | None = None  # send there, not into the store

    async def go(self) -> int:
        """Do it all. Returns the exit code."""
        from producer.client import AsyncClient

        async with AsyncClient(self.store) as client:
            tickets = await self._send(client)
            if not self.wait:
                self._tell_ids(tickets)
                return 0
            if self.out is None and not self.as_json:
                self._tell_ids(tickets)  # before the waiting: whoever breaks it off can still `fetch`
            return await self._collect(client, tickets)

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

    def _tell_ids(self, tickets: list[Ticket]) -> None:
        if self.as_json:
            print_json({"requests": [_named(i, t) for i, t in zip(self.items, tickets, strict=True)]})
            return
        for ticket in tickets:
            typer.echo(ticket.id)

    async def _collect(self, client: AsyncClient, tickets: list[Ticket]) -> int:
        from producer.commands import show
        from producer.input_files import row_ids

        rows = {t.id: row_ids(i, t.id) for i, t in zip(self.items, tickets, strict=True) if i.batch}
        ended, late = await show.follow(client, tickets, rows, timeout=self.timeout, quiet=self.as_json)
        # an id that another body took first is answered as id~hash
        results = [ended.get(t.id) or _beside(ended, t.id) for t in tickets]
        saved = await self._save(client, [r for r in results if r is not None])
        if self.as_json:
            named = zip(self.items, tickets, results, strict=True)
            print_json({"requests": [_named(i, t) | _told(r, saved) for i, t, r in named]})
        else:
            for path in [path for paths in saved.values() for path in paths]:
                typer.echo(path)
            batches = {t.id for t in tickets if t.id in rows}
            names = {t.id: i.name for i, t in zip(self.items, tickets, strict=True)}
            show.summary(
                [r for r in ended.values() if r.id not in batches or _says_more(r, rows[r.id])], names
            )
        if late is not None:
            if not self.as_json:
                tell(late, as_json=False)
            return code_of(late)
        return 0 if all(r is not None and r.status == "succeeded" for r in results) else FAILED

    async def _save(self, client: AsyncClient, results: list[Result]) -> dict[str, list[Path]]:
        if self.out is None:
            return {}
        from producer import collect

        out = self.out

        async def save(result: Result) -> list[Path]:
            return await collect.save(client.store, result, out, flat=self.flat)

        saved = await gather_bounded(results, self.concurrency, save)
        return {result.id: paths for result, paths in zip(results, saved, strict=True)}


def _says_more(batch: Result, rows: list[str]) -> bool:
    """Whether a batch's own result tells what its rows do not: it failed as a whole."""
    return batch.batch is None and bool(rows)


def _beside(ended: dict[str, Result], id: str) -> Result | None:
    return next((r for r in ended.values() if r.id.startswith(f"{id}~")), None)


def _named(item: Item, ticket: Ticket) -> dict[str, Any]:
    return {"name": item.name, "id": ticket.id, "key": ticket.key or None}


def _told(result: Result | None, saved: dict[str, list[Path]]) -> dict[str, Any]:
    if result is None:
        return {"status": None}
    told: dict[str, Any] = {"id": result.id, "status": result.status}
    told["images"] = [image.model_dump(mode="json") for image in result.images]
    if result.id in saved:
        told["saved"] = [str(path) for path in saved[result.id]]
    if result.failure is not None:
        told["failure"] = result.failure.model_dump(mode="json", exclude_none=True)
    if result.warnings:
        told["warnings"] = [note.model_dump(mode="json", exclude_none=True) for note in result.warnings]
    if result.batch is not None:
        told["counts"] = result.batch.counts.model_dump(mode="json")
    return told


def imagine(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    store: StoreUrl = DEFAULT_STORE,
    number: Annotated[
        int, typer.Option("--number", "-n", min=1, help="How many images; image k has seed + k.")
    ] = 1,
    size: Annotated[str | None, typer.Option(help="Pixels, such as 512 or 768x512.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    cfg: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    seed: Annotated[int | None, typer.Option(help="By default drawn by lot, and recorded.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to keep away from.")] = None,
    model: Annotated[str | None, typer.Option(help="See `dreamdrop models`.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Such as DDIM or 'Euler a'.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to start from.")] = None,
    mask: Annotated[Path | None, typer.Option(help="With --image: white is repainted.")] = None,
    strength: Annotated[float | None, typer.Option(help="With --image: how far to go from it.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where to save.")] = Path(),
    express: Annotated[bool, typer.Option(help="Use the lane that workers look at first.")] = True,
    timeout: Timeout = None,
    as_json: AsJson = False,
) -> None:
    """Draw one prompt, wait, save the pictures and print their paths."""
    from producer.input_files import Item

    document: dict[str, Any] = {"prompt": prompt, "number_of_images": number}
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
    with spoken(as_json=as_json):
        document |= sized(size) | pictures(image, mask)
        item = Item("imagine", False, checked(document), None)
    errand = Errand(store, [item], True, out, express, 16, timeout, as_json, flat=True)
    raise typer.Exit(run(errand.go(), as_json=as_json))


def sized(text: str | None) -> dict[str, int]:
    """`512` or `768x512`, as fields. Raises `Rejected`."""
    from schemas.errors import Rejected

    if text is None:
        return {}
    width, times, height = text.lower().replace("×", "x").partition("x")
    if not (width.isdecimal() and (height.isdecimal() if times else True)):
        raise Rejected(
            "invalid_manifest", f"--size is {text!r}; write pixels, such as 512 or 768x512", field="width"
        )
    return {"width": int(width), "height": int(height if times else width)}


def pictures(image: Path | None, mask: Path | None) -> dict[str, str]:
    """Picture files, as fields. Raises `Rejected`."""
    from producer.bulk import embedded

    named = {"image": image, "mask_image": mask}
    return {name: embedded(path) for name, path in named.items() if path is not None}


def checked(document: dict[str, Any]) -> bytes:
    """A document as bytes, checked as a worker would. Raises `Rejected`."""
    import json

    from schemas.manifest import validate_manifest

    validate_manifest(document)
    return json.dumps(document, ensure_ascii=False).encode()
