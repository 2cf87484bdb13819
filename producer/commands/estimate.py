"""`dreamdrop estimate`: what requests will take, before they are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from producer.commands.session import (
    DEFAULT_STORE,
    FAILED,
    OK,
    AsJson,
    StoreUrl,
    print_json,
    reporting_errors,
    require_store,
    run,
    say,
)

if TYPE_CHECKING:
    from producer.input_files import Item
    from producer.planning.estimate import Costing, Estimate, Line
    from producer.planning.pending import Pending
    from producer.planning.planner import Planner
    from producer.planning.work import Work

_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}


def estimate(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Requests, as `dreamdrop submit` takes them: .json, .jsonl, .csv, .txt, folders.",
        ),
    ],
    store: StoreUrl = DEFAULT_STORE,
    price: Annotated[
        float | None, typer.Option(metavar="NUMBER", min=0, help="What one device costs; see --per.")
    ] = None,
    per: Annotated[
        Literal["second", "minute", "hour", "day"],
        typer.Option("--per", help="The time that --price is for."),
    ] = "hour",
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Devices that will draw; by default those of the live workers."
        ),
    ] = None,
    step_ms: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            min=0.001,
            help="Milliseconds of one step of one image with guidance, at its model's own size; instead of what "
            "workers have measured.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model of requests that name none; by default the workers'."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how long requests will take, and what they will cost.

    Nothing is sent. Every file is checked as `submit` checks it. What a request leaves open is filled in as
    the live workers would. Its work is counted: images x UNet calls x rows (2 with guidance). Times are those that
    live workers have measured and write into their heartbeats: milliseconds of a row in a UNet call, and of an
    image beside that, by model and size. For another size they are scaled by the pixels.

    What waits in the store comes first; both finishes are printed, as submitted with and without --express. Up to
    200 waiting requests of each kind are read, and the others count like them. Messages of a queue are not seen.
    """
    from infra.limits_env import limits_from
    from producer.input_files import gather

    with reporting_errors(as_json=as_json):
        items = gather(files, limits=limits_from())
    work = _Estimation(store, items, model, workers, step_ms, price, per, as_json)
    raise typer.Exit(run(work.run(), as_json=as_json))


class _Estimation:
    """One run of the command."""

    def __init__(
        self,
        store: str,
        items: list[Item],
        model: str | None,
        devices: int | None,
        step_ms: float | None,
        price: float | None,
        per: str,
        as_json: bool,
    ) -> None:
        self.store, self.items, self.model, self.devices = store, items, model, devices
        self.step_ms, self.price, self.per, self.as_json = step_ms, price, per, as_json

    async def run(self) -> int:
        """Run it. Returns the exit code."""
        from infra.limits_env import limits_from
        from infra.stores.open import open_store
        from producer.overview import heartbeats
        from producer.planning.estimate import Costing, estimate
        from producer.planning.pending import pending
        from producer.planning.planner import Planner
        from producer.planning.speeds import Speeds

        require_store(self.store)
        async with open_store(self.store) as store:
            beats = await heartbeats(store)
            planner = Planner(store, beats, self.model, limits_from())
            work = await self._work(planner)
            waiting = await pending(store, planner)
            speeds = Speeds.read(beats)
            natives = await _natives(planner, [work, *waiting.lanes.values()])
        costing = Costing(speeds, self.devices or speeds.devices or 1, self.step_ms, natives)
        found = estimate(work, waiting.lanes, costing)
        notes = self._notes(found, waiting, planner, costing)
        if self.as_json:
            print_json(self._document(work, found, waiting, costing, notes))
        else:
            self._print(work, found, waiting, costing, notes)
        return FAILED if found.unmeasured else OK

    async def _work(self, planner: Planner) -> Work:
        """The work of all files. Raises `Rejected`, which names the file."""
        from producer.planning.work import Work
        from schemas.errors import Rejected

        works = []
        for item in self.items:
            try:
                works.append(await planner.item(item))
            except Rejected as fault:
                text = f"{item.name}: {fault.message}"
                raise Rejected(fault.code, text, field=fault.field, line=fault.line) from fault
        return Work.of(works)

    def _notes(self, found: Estimate, waiting: Pending, planner: Planner, costing: Costing) -> list[str]:
        """What the reader must know about the figures."""
        notes = []
        if found.unmeasured:
            names = ", ".join(found.unmeasured)
            notes.append(
                f"no live worker has measured {names}, so there is no time for it: start a worker and draw one "
                "picture, or give --step-ms"
            )
        if self.step_ms is not None:
            notes.append("times are from --step-ms: text encoder and VAE are not in them")
        for line in found.lines:
            if line.speed is not None and line.speed.workers and line.speed.pixels != line.pixels:
                text = f"{line.model} was measured at {line.speed.pixels:,} pixels, not at {line.pixels:,}: scaled"
                notes.append(text)
        if self.devices is None and not planner.beats:
            notes.append("no worker is running: counted for one device")
        if planner.unknown_sizes:
            text = f"{planner.unknown_sizes} pictures are not in their requests: counted at their model's own size"
            notes.append(text)
        if waiting.read < waiting.listed:
            text = (
                f"{waiting.read:,} of the {waiting.listed:,} that wait were read; the others count like them"
            )
            notes.append(text)
        if waiting.cut:
            notes.append("more wait than were listed, so the true finish is later")
        return notes

    def _cost(self, found: Estimate) -> float | None:
        return None if self.price is None else found.device_seconds * self.price / _SECONDS[self.per]

    def _document(
        self, work: Work, found: Estimate, waiting: Pending, costing: Costing, notes: list[str]
    ) -> dict[str, Any]:
        known = not found.unmeasured
        return {
            "requests": round(work.requests),
            "images": round(work.images()),
            "row_steps": round(work.row_steps()),
            "gpu_seconds": round(found.device_seconds, 3) if known else None,
            "devices": costing.devices,
            "pending": {
                name: {
                    "requests": round(waiting.lanes[lane].requests),
                    "gpu_seconds": round(found.before[lane], 3) if known else None,
                }
                for name, lane in (("express", True), ("normal", False))
            },
            "finish_seconds": {
                name: round(found.finish[lane], 3) if known else None
                for name, lane in (("express", True), ("normal", False))
            },
            "cost": self._cost(found) if known else None,
            "work": [_line(line) for line in found.lines],
            "notes": notes,
        }

    def _print(
        self, work: Work, found: Estimate, waiting: Pending, costing: Costing, notes: list[str]
    ) -> None:
        _row(
            "requests", f"{work.requests:,.0f}, {work.images():,.0f} image{'s' * (round(work.images()) != 1)}"
        )
        for line in found.lines:
            _row("work", _sentence(line))
        if not found.unmeasured:
            _row("GPU time", _time(found.device_seconds))
            before = {lane: _time(seconds) for lane, seconds in found.before.items()}
            _row("waiting", f"{before[True]} of GPU time in the express lane, {before[False]} in the other")
            devices = f"with {costing.devices} device{'s' * (costing.devices != 1)}"
            _row("finish", f"in {_time(found.finish[False])} {devices}")
            _row("", f"in {_time(found.finish[True])} with --express")
            if (cost := self._cost(found)) is not None:
                _row(
                    "cost", f"{cost:,.4g} at {self.price:g} per device and {self.per}, idle time not counted"
                )
        for note in notes:
            say(f"note: {note}")


def _row(name: str, text: str) -> None:
    typer.echo(f"{name:10}{text}")


async def _natives(planner: Planner, works: list[Work]) -> dict[str, int]:
    """The pixels of each model's own size."""
    from producer.planning.planner import size_of
    from schemas.errors import Rejected

    natives = {}
    for name in {piece.model for work in works for piece in work.pieces}:
        try:
            width, height = size_of((await planner.card(name))[1])
        except Rejected:
            continue
        natives[name] = width * height
    return natives


def _line(line: Line) -> dict[str, Any]:
    speed = line.speed
    return {
        "model": line.model,
        "pixels": line.pixels,
        "images": round(line.images),
        "row_steps": round(line.row_steps),
        "row_ms": round(speed.row_ms, 4) if speed else None,
        "image_ms": round(speed.image_ms, 4) if speed else None,
        "measured_by": speed.workers if speed else 0,
        "measured_at_pixels": speed.pixels if speed and speed.workers else None,
    }


def _sentence(line: Line) -> str:
    text = f"{line.model}, {line.pixels:,} pixels: {line.row_steps:,.0f} row-steps"
    if line.speed is None:
        return text
    return f"{text} of {line.speed.row_ms:.3g} ms, and {line.speed.image_ms:.3g} ms an image"


def _time(seconds: float) -> str:
    """For people: `1 h 12 min`, `48 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440:,} days {minutes % 1440 // 60} h"
