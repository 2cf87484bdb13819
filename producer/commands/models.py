"""`dreamdrop models ...`: what can be drawn with, and what is published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from producer.commands.look import with_client
from producer.commands.session import (
    DEFAULT_STORE,
    FAILED,
    OK,
    AsJson,
    StoreUrl,
    print_json,
    run,
    say,
)
from schemas.errors import Rejected

if TYPE_CHECKING:
    from producer.client import AsyncClient
    from producer.models.known import ModelName
    from schemas.models import Move, PublishedCard

app = typer.Typer(help="List, publish, move and remove models.")

Reference = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="A published model, such as my-dog or my-dog@2.")
]
Known = Annotated[
    str, typer.Argument(metavar="NAME[@VERSION]", help="A model, such as doodle, my-dog or my-dog@2.")
]
Version = Annotated[
    str, typer.Argument(metavar="NAME@VERSION", help="One version of a published model, such as my-dog@2.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A published model, such as my-dog.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the models of live workers and of the store; with a command, work with those of the store."""
    if context.invoked_subcommand is None:
        _list(store, as_json)


@app.command("list")
def list_all(store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the models of live workers and of the store, and what fills the fields that a request leaves open."""
    _list(store, as_json)


def _list(store: str, as_json: bool) -> None:
    async def work(client: AsyncClient) -> None:
        from producer import overview

        known = await client.models()
        beats = await overview.heartbeats(client.store)
        addons = {kind: sorted(overview.addons_of(beats, kind)) for kind in ("controlnets", "ip_adapters")}
        if as_json:
            print_json({"models": [model.document() for model in known], **addons})
            return
        for model in known:
            typer.echo("\t".join(model.columns()))
        for kind, what in (("controlnets", "a ControlNet"), ("ip_adapters", "an IP-Adapter")):
            for name in addons[kind]:
                typer.echo(f"{name}\there\t{what} for requests")
        if not any(model.workers for model in known):
            say(f"no worker is running; start one with: dreamdrop worker --store {store}")

    run(with_client(store, as_json, work), as_json=as_json)


@app.command()
def show(reference: Known, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show a model: its state and what it draws with; of a published one its card, and how its name has moved."""

    async def work(client: AsyncClient) -> None:
        from infra.models import published

        known = await client.models()
        model = next((m for m in known if m.name == reference.partition("@")[0]), None)
        try:
            card = await published.resolve(client.store, reference)
        except Rejected as error:
            if not any(one.workers for one in known):
                text = f"{error.message}; no worker is running that tells of its own models"
                raise Rejected(error.code, text, field=error.field) from error
            if model is None or "@" in reference or model.versions:
                raise
            _show(None, model, [], as_json)
            return
        _show(card, model, await published.history(client.store, card.name), as_json)

    run(with_client(store, as_json, work), as_json=as_json)


def _show(card: PublishedCard | None, model: ModelName | None, moves: list[Move], as_json: bool) -> None:
    from schemas.defaults import sized

    if as_json:
        history = [{"number": move.number, "version": move.version, "at": move.at} for move in moves]
        facts = {"model": model.document() if model else None}
        print_json({"card": card.model_dump(mode="json"), "history": history} | facts if card else facts)
        return
    known = _facts(card) if card else {"model": model.name if model else ""}
    if model is not None:
        known |= {
            "state": model.state.text() if model.state else "",
            "by default": model.defaults.text(),
            "weights": f"{sized(model.memory)} at 16 bits" if model.memory else "",
            "licence": known.get("licence") or model.licence,
        }
    for name, value in known.items():
        if value:
            typer.echo(f"{name + ':':16}{value}")
    if moves:
        moved = ", ".join(f"{move.version or 'to nothing'} ({move.at})" for move in moves)
        typer.echo(f"{'name moved:':16}{moved}")


def _facts(card: PublishedCard) -> dict[str, str]:
    """A card for people; what it does not say is left out."""
    size = sum(file.size for file in card.files)
    facts = {
        "model": card.reference,
        "kind": "a LoRA" if card.kind == "lora" else "a full model",
        "base": " ".join(filter(None, (card.base, card.base_revision))),
        "family": card.family,
        "trigger words": ", ".join(card.trigger_words),
        "weight": f"{card.weight:g}" if card.kind == "lora" else "",
        "size": f"{card.native_width} x {card.native_height}" if card.native_width else "",
        "predicts": card.prediction_type,
        "scheduler": card.scheduler,
        "steps": str(card.steps or ""),
        "guidance": f"{card.cfg_scale:g}" if card.cfg_scale is not None else "",
        "licence": card.licence,
        "training": card.training,
        "loss": f"{card.loss:.4g}" if card.loss is not None else "",
        "published": card.created_at,
        "files": f"{len(card.files)}, {size:,} bytes",
    }
    return {name: value for name, value in facts.items() if value}


@app.command()
def use(reference: Version, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Let a name mean this version from now on; requests that are being drawn keep theirs."""

    async def work(client: AsyncClient) -> None:
        from infra.models import published

        move = await published.use(client.store, reference)
        _say_move(reference.partition("@")[0], move.version, as_json)

    run(with_client(store, as_json, work), as_json=as_json)


@app.command()
def rollback(name: Name, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Let a name mean the version that it meant before."""

    async def work(client: AsyncClient) -> None:
        from infra.models import published

        _say_move(name, (await published.rollback(client.store, name)).version, as_json)

    run(with_client(store, as_json, work), as_json=as_json)


def _say_move(name: str, version: int | None, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "version": version})
    else:
        say(f"{name} means {name}@{version} now; workers notice within seconds")


@app.command()
def remove(reference: Reference, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Remove a version, or a name with all of its versions.

    Refused for the version that the name means, and while a request or a training that is under way needs it.
    """

    async def work(client: AsyncClient) -> None:
        from infra.models.removal import remove as remove_from

        removed = [card.reference for card in await remove_from(client.store, reference)]
        if as_json:
            print_json({"removed": removed})
        else:
            say(f"removed {', '.join(removed)}")

    run(with_client(store, as_json, work), as_json=as_json)


@app.command()
def verify(reference: Reference, store: StoreUrl = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Read every file of a published model, and compare its hash with the card's."""

    async def work(client: AsyncClient) -> int:
        from infra.models.removal import verify as verify_in

        faults = await verify_in(client.store, reference, None if as_json else say)
        if as_json:
            print_json({"model": reference, "faults": faults})
        for fault in [] if as_json else faults:
            typer.echo(fault)
        if not (as_json or faults):
            say(f"{reference} is sound")
        return FAILED if faults else OK

    raise typer.Exit(run(with_client(store, as_json, work), as_json=as_json))


@app.command("import")
def import_(
    source: Annotated[
        Path, typer.Argument(help="A diffusers folder, or a .safetensors file: a whole model, or a LoRA.")
    ],
    name: Annotated[str, typer.Option(help="The name to publish it under.")],
    base: Annotated[
        str,
        typer.Option(help="The model that a LoRA was made for; by default the built-in one of its family."),
    ] = "",
    weight: Annotated[float, typer.Option(help="A LoRA's default weight.")] = 1.0,
    trigger: Annotated[
        list[str] | None, typer.Option(help="A word that calls the concept in a prompt; repeatable.")
    ] = None,
    licence: Annotated[str, typer.Option(help="The licence that it is under.")] = "",
    configs: Annotated[
        str,
        typer.Option(
            help="For a whole model in one file: a diffusers folder of its family (its weights are not read), or the "
            "name of a built-in or published model; by default the first that is here."
        ),
    ] = "",
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        typer.Option(help="For a whole model in one file: what it predicts, where the file does not say it."),
    ] = None,
    store: StoreUrl = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Publish a model that was made elsewhere, as the next version of a name."""

    async def work(client: AsyncClient) -> None:
        import tempfile

        from infra.models import published
        from producer.commands.progress import copying
        from producer.models import single_file
        from producer.models.exchange import is_single_file, prepare
        from schemas.models import check_name

        check_name(name)
        with tempfile.TemporaryDirectory() as scratch, copying(as_json) as progress:
            given, links = source, Path(scratch) / "links"
            links.mkdir()
            if is_single_file(source):
                if weight != 1:  # told before the conversion, which takes minutes
                    raise Rejected.of_field("weight", f"is for LoRAs; {source} is a whole model")
                wishes = single_file.Wishes(configs, prediction_type or "")
                given = await single_file.to_folder(client.store, source, wishes, Path(scratch), say)
            elif configs or prediction_type:
                raise Rejected.of_field("configs", "and --prediction-type are for a whole model in one file")
            folder, card, left_out = prepare(
                given,
                name,
                links,
                base=base,
                weight=weight,
                trigger=tuple(trigger or ()),
                licence=licence,
            )
            card = await published.publish(client.store, folder, card, progress=progress)
        if as_json:
            print_json({"card": card.model_dump(mode="json"), "left_out": left_out})
            return
        if left_out:
            say(f"left out: {', '.join(left_out)}")
        lora = f', or as "loras": [{{"name": "{card.name}"}}]' if card.kind == "lora" else ""
        say(f'published {card.reference}; use it as "model": "{card.name}"{lora}')

    run(with_client(store, as_json, work), as_json=as_json)


@app.command()
def export(
    reference: Reference,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file (a LoRA) or new folder to write.")],
    format: Annotated[
        Literal["diffusers", "kohya"],
        typer.Option(help="How a LoRA's tensors are named; kohya is what A1111, Forge and ComfyUI read."),
    ] = "diffusers",
    store: StoreUrl = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Save a published model: a LoRA as one file, a full model as a diffusers folder."""

    async def work(client: AsyncClient) -> None:
        from producer.commands.progress import copying
        from producer.models.exchange import save

        with copying(as_json) as progress:
            saved = await save(client.store, reference, out, format, progress)
        if as_json:
            print_json({"model": reference, "saved": str(saved)})
        else:
            typer.echo(saved)

    run(with_client(store, as_json, work), as_json=as_json)
