"""`dreamdrop clean`: removes requests, or trainings, that ended long ago."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producer.commands.session import (
    DEFAULT_STORE,
    AsJson,
    StoreUrl,
    print_json,
    reporting_errors,
    require_store,
    run,
    say,
)

if TYPE_CHECKING:
    from infra.claims.retention import Ended, Survey
    from producer.trainings.retention import TrainingSurvey

_AGE = re.compile(r"([0-9]{1,9})([hdw])")
_SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
_SHOWN = 20  # ids that are printed; --json has them all


def _age(text: str) -> float:
    """Seconds of an age such as 30d. Raises `BadParameter`."""
    match = _AGE.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if seconds < _SECONDS["h"]:
        raise typer.BadParameter(
            f"{text!r} is not an age: give a number with h, d or w (hours, days, weeks), such as 30d; "
            "the least is 1h, because a worker that sleeps may still be about to store its result"
        )
    return seconds


def clean(
    older_than: Annotated[
        str,
        typer.Option(metavar="AGE", help="What ended longer ago than this: 12h, 30d, 8w; the least is 1h."),
    ],
    failed: Annotated[
        bool,
        typer.Option(
            "--failed",
            help="Only what ended without pictures, or without a model: failed, canceled or expired.",
        ),
    ] = False,
    trainings: Annotated[
        bool,
        typer.Option(
            "--trainings",
            help="Trainings in place of requests: their results, checkpoints and uploaded pictures.",
        ),
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove it; without this, only say what would go.")
    ] = False,
    store: StoreUrl = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Remove old results with all that belongs to them.

    A batch goes with its rows. What is not over is never touched. Ages are by the store's own clock. If it is
    interrupted, run it again. Afterwards an id is free: the same request is drawn anew.

    With --trainings: of a training that a published model names only the checkpoints and class pictures go, so that
    `train continue` cannot go on with it; its report stays until `models remove`, and a clean after that.
    """
    seconds = _age(older_than)
    work = _clean_trainings if trainings else _clean
    run(work(store, seconds, older_than, failed, apply, as_json), as_json=as_json)


async def _clean(store: str, seconds: float, age: str, failed: bool, apply: bool, as_json: bool) -> None:
    from infra.claims.retention import remove, survey
    from infra.stores.open import open_store

    with reporting_errors(as_json=as_json):
        require_store(store)
    async with open_store(store) as opened:
        found = await survey(opened, seconds, failed=failed)
        if not as_json:
            _show(found, age)
        if apply:
            await remove(opened, found.going)
    if as_json:
        print_json({"removed": apply, **found.totals(), **_document(found)})
    elif apply:
        typer.echo("removed, but for what was asked for meanwhile" if found.going else "nothing was removed")
    elif found.going:
        say("nothing is removed yet: add --apply")


async def _clean_trainings(
    store: str, seconds: float, age: str, failed: bool, apply: bool, as_json: bool
) -> None:
    from infra.stores.open import open_store
    from producer.trainings.retention import remove, survey

    with reporting_errors(as_json=as_json):
        require_store(store)
    async with open_store(store) as opened:
        found = await survey(opened, seconds, failed=failed)
        if not as_json:
            _show_trainings(found, age)
        if apply:
            await remove(opened, found)
    if as_json:
        ids = [
            {"id": old.id, "whole": old.whole, "objects": old.objects, "bytes": old.bytes}
            for old in found.going
        ]
        print_json({"removed": apply, **found.totals(), "ids": ids, "kept": {"open": found.open}})
    elif apply:
        some = found.going or found.uploads
        typer.echo("removed, but for what was asked for meanwhile" if some else "nothing was removed")
    elif found.going or found.uploads:
        say("nothing is removed yet: add --apply")


def _show_trainings(found: TrainingSurvey, age: str) -> None:
    for old in found.going[:_SHOWN]:
        what = "" if old.whole else " (checkpoints; its model is published)"
        typer.echo(f"{old.id}{what}: {old.objects:,} objects, {_bytes(old.bytes)}")
    if len(found.going) > _SHOWN:
        typer.echo(f"... and {len(found.going) - _SHOWN:,} more (--json lists them all)")
    t = found.totals()
    typer.echo(
        f"ended more than {age} ago: {t['trainings']:,} trainings, checkpoints of {t['checkpoints_of_published']:,} "
        f"with published models, and {t['uploads']:,} uploaded pictures that no training needs; "
        f"{t['objects']:,} objects, {_bytes(t['bytes'])}"
    )
    if found.open:
        typer.echo(f"kept: {len(found.open):,} old trainings that are asked for again or gone on from")


def _document(found: Survey) -> dict[str, Any]:
    return {
        "ids": [{"id": e.id, "rows": len(e.rows), **_sizes(e)} for e in found.going],
        "kept": {"open": found.open, "rows_of_kept_batches": found.in_batch},
    }


def _sizes(ended: Ended) -> dict[str, int]:
    objects, size = ended.total()
    return {"objects": objects, "bytes": size}


def _show(found: Survey, age: str) -> None:
    for ended in found.going[:_SHOWN]:
        objects, size = ended.total()
        rows = f" and {len(ended.rows):,} rows" if ended.is_batch else ""
        typer.echo(f"{ended.id}{rows}: {objects:,} objects, {_bytes(size)}")
    if len(found.going) > _SHOWN:
        typer.echo(f"... and {len(found.going) - _SHOWN:,} more (--json lists them all)")
    t = found.totals()
    typer.echo(
        f"ended more than {age} ago: {t['requests']:,} requests, and {t['batches']:,} batches with "
        f"{t['rows']:,} rows; {t['objects']:,} objects, {_bytes(t['bytes'])}"
    )
    if found.open:
        typer.echo(f"kept: {len(found.open):,} old results whose id, or whose batch, is not over")
    if found.in_batch:
        typer.echo(f"kept: {found.in_batch:,} old rows whose batch stays")


def _bytes(size: int) -> str:
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= one:
            return f"{size / one:,.1f} {unit}"
    return f"{size} bytes"
