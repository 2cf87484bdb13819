"""`dreamdrop bench`: reads its options, measures, and writes what it found."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from schemas.errors import DreamError, Rejected

if TYPE_CHECKING:
    from consumer.bench.measure import Cell
    from consumer.renderer.protocol import Ready, RendererSettings
    from infra.models.cards import ModelCard

_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?", re.ASCII)
_MAX_ROWS = 256
STOPPED = 130  # exit status after Ctrl-C


app = typer.Typer(
    help="Measure a model here, and recommend settings for a worker.",
    add_completion=False,
    rich_markup_mode=None,  # help texts hold brackets
)


def _sizes(text: str) -> str:
    for part in text.split(","):
        found = _SIZE.fullmatch(part.strip())
        sides = [int(side) for side in found.groups() if side] if found else [0]
        if text and any(side % 8 or not side for side in sides):
            raise typer.BadParameter(f"{part!r} is not a size: write multiples of 8, such as 512 or 768x512")
    return text


def _rows(text: str) -> str:
    for part in text.split(","):
        if not (part.strip().isascii() and part.strip().isdecimal() and 1 <= int(part) <= _MAX_ROWS):
            raise typer.BadParameter(
                f"{part!r} is not a number of rows: write 1 to {_MAX_ROWS}, such as 2,4,8"
            )
    return text


@app.command()
def bench(
    model: Annotated[
        str, typer.Option(metavar="NAME", help="The model to measure; auto: sd21 with CUDA, else doodle.")
    ] = "auto",
    models: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SOURCE",
            help="Where a model of your own lies, as for `dreamdrop worker`; repeatable.",
        ),
    ] = None,
    sizes: Annotated[
        str,
        typer.Option(
            callback=_sizes,
            metavar="PIXELS,...",
            help="Such as 512,768x512; by default the model's own size.",
        ),
    ] = "",
    rows: Annotated[
        str,
        typer.Option(
            callback=_rows, metavar="N,...", help="Rows of a UNet call; an image with guidance has two."
        ),
    ] = "2,4,8,16",
    steps: Annotated[
        int, typer.Option(min=2, metavar="N", help="Steps of each image: the calls that are measured.")
    ] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, ...; one of them.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    attention: Annotated[str, typer.Option(help="auto, sdpa or xformers.")] = "auto",
    offload: Annotated[bool, typer.Option("--offload", help="Keep idle modules in host memory.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for bench.json and bench.svg.")] = Path(
        "dreamdrop-bench"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for programs, and nothing else.")
    ] = False,
) -> None:
    """Measure a model here, and recommend settings for a worker.

    Draws with a renderer like a worker's: as many images at once as give UNet calls of the wanted rows. Prints
    milliseconds of a step (one call) and of a row, images a second with the model's own steps and guidance, and
    memory (of the GPU, or of the process on a CPU). Draws a plot and writes all figures. Needs no store. Ctrl-C
    stops it, and keeps what was measured. Other work on the machine makes the figures worse.
    """
    try:
        card, settings = _settings(model, models or [], device, dtype, attention, offload, rows)
        wanted = _wanted(sizes, card)
        out.mkdir(parents=True, exist_ok=True)
        asyncio.run(_run(card, settings, wanted, _numbers(rows), steps, out, as_json))
    except KeyboardInterrupt:
        raise typer.Exit(STOPPED) from None
    except (DreamError, OSError) as error:
        typer.echo(f"dreamdrop: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, Rejected) else 3) from None


def _numbers(rows: str) -> list[int]:
    return sorted({int(part) for part in rows.split(",")})


def _wanted(sizes: str, card: ModelCard) -> list[tuple[int, int]]:
    """The sizes to measure. Raises `Rejected` for one that the model cannot draw."""
    if not sizes:
        return [(card.native_width, card.native_height)]
    found = [_SIZE.fullmatch(part.strip()) for part in sizes.split(",")]
    wanted = [(int(one[1]), int(one[2] or one[1])) for one in found if one]
    for size in wanted:
        if any(side % card.size_multiple for side in size):
            text = f"--sizes has {size[0]}x{size[1]}; {card.name} draws multiples of {card.size_multiple}"
            raise Rejected("invalid_manifest", text, field="width")
    return wanted


def _settings(
    model: str, models: list[str], device: str, dtype: str, attention: str, offload: bool, rows: str
) -> tuple[ModelCard, RendererSettings]:
    """The model's card, and what the child is told. Raises `DreamError`."""
    from consumer.renderer.devices import default_model, devices_of, dtype_of
    from consumer.renderer.protocol import RendererSettings
    from infra.models.cards import Cards

    cards = Cards.of(models)
    pairs = (text.partition("=") for text in models)
    settings = RendererSettings(
        device=device,
        dtype=dtype_of(dtype),
        attention=attention,
        offload=offload,
        max_rows=max(2, *_numbers(rows)),
        measure=False,  # else a GPU's engine chooses the rows by itself
        models=tuple((name.strip(), source.strip()) for name, _, source in pairs),
    )
    devices = devices_of(settings)
    card = cards.get(default_model(model, devices)[0])
    import msgspec

    return card, msgspec.structs.replace(settings, device=devices[0], preload=card.name)


async def _run(
    card: ModelCard,
    settings: RendererSettings,
    sizes: list[tuple[int, int]],
    rows: list[int],
    steps: int,
    out: Path,
    as_json: bool,
) -> None:
    """Measure, print as it goes, and write what was measured, also when it is stopped."""
    from consumer.bench import report
    from consumer.bench.measure import Bench

    cells: list[Cell] = []
    if not as_json:
        typer.echo(f"loading {card.name} ...", err=True)
    async with Bench(settings, card, steps) as bench:
        assert bench.ready is not None
        if not as_json:
            typer.echo(
                f"{card.name} on {bench.ready.device}, {bench.ready.dtype}, {steps} steps\n{report.HEAD}"
            )
        try:
            async for cell in bench.cells(sizes, rows):
                cells.append(cell)
                if not as_json:
                    typer.echo(report.line(cell, card))
        except asyncio.CancelledError:
            typer.echo("stopped; what was measured so far is kept", err=True)
            raise
        finally:
            if cells:
                _write(cells, card, settings, bench.ready, steps, out, as_json)


def _given(settings: RendererSettings, offload: bool) -> list[str]:
    """The options with which a worker is the one that was measured, but for `--offload` where that is there already."""
    words = [word for pair in settings.models for word in ("--models", shlex.quote("=".join(pair)))]
    for option, value in (("--dtype", settings.dtype), ("--attention", settings.attention)):
        words += [option, value] if value != "auto" else []
    return words + ["--offload"] * (settings.offload and not offload)


def _write(
    cells: list[Cell],
    card: ModelCard,
    settings: RendererSettings,
    ready: Ready,
    steps: int,
    out: Path,
    as_json: bool,
) -> None:
    from consumer.bench import report

    facts = {
        "model": card.name,
        "device": ready.device,
        "dtype": ready.dtype,
        "versions": ready.versions,
        "steps_measured": steps,
        "steps": card.steps,
        "guidance": card.cfg_scale > 1,
    }
    text = json.dumps(report.document(cells, card, facts), indent=1) + "\n"
    (out / "bench.json").write_text(text)
    (out / "bench.svg").write_text(report.plot(cells, card, f"{card.name} on {ready.device}, {ready.dtype}"))
    if as_json:
        typer.echo(text, nl=False)
        return
    guided = "with guidance" if card.cfg_scale > 1 else "without guidance"
    typer.echo(f"\nimages/s: in a steady stream, {card.steps} steps {guided}. Plot and figures: {out}/")
    found = report.advice(cells, card)
    if found is None:
        typer.echo("nothing could be measured, so nothing is recommended")
        return
    options = [*found.options(), *_given(settings, found.offload)]
    typer.echo(f"recommended: dreamdrop worker --model {card.name} {' '.join(options)}")
    ahead = f"such a worker takes {2 * found.max_rows} images ahead"
    more = (
        "these were the most rows; more may be faster" if found.still_faster else "more bring less than 5 %"
    )
    typer.echo(f"{more}; {ahead}")
