"""`dreamdrop train` and `dreamdrop trainer`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from infra.options import (
    DEFAULT_STORE,
    Lease,
    LogFormat,
    LogLevel,
    MaxAttempts,
    MetricsHost,
    MetricsPort,
    ModelCacheGb,
    Once,
    StoreUrl,
)
from schemas.errors import DreamError
from training.tracker_options import LoggingDir, ReportTo, logs_of

train = typer.Typer(
    help="Teach a model a new concept, from a few pictures.", no_args_is_help=True, rich_markup_mode=None
)
trainer = typer.Typer(help="Run the trainings of a store.", add_completion=False, rich_markup_mode=None)

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
Id = Annotated[
    str, typer.Argument(metavar="ID", help="The training's id: the path of its file below trainings/.")
]


@train.command("dreambooth", context_settings=_PASSED_ON)
def dreambooth(context: typer.Context) -> None:
    """Teach a model a new concept from a few pictures; every field of the training manifest is an option."""
    from training.options import app  # only now: the root's help must be fast, and this needs the schemas

    app(context.args, prog_name=context.command_path)


@train.command()
def stop(id: Id, store: StoreUrl = DEFAULT_STORE) -> None:
    """Stop a training early, and publish what it has learned so far."""
    from training.control import ask_to_stop

    typer.echo(_run(ask_to_stop(store, id)))


@train.command("continue")
def go_on(
    id: Id,
    steps: Annotated[int, typer.Option(min=1, help="How many steps to add.")],
    store: StoreUrl = DEFAULT_STORE,
) -> None:
    """Go on with a training that has ended: drop one that begins at its last checkpoint."""
    from training.control import go_on_with

    typer.echo(_run(go_on_with(store, id, steps)))


@train.command()
def report(
    id: Id,
    store: StoreUrl = DEFAULT_STORE,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to save it in.")] = Path(),
) -> None:
    """Save a training's report page with its validation pictures."""
    from training.control import save_report

    typer.echo(_run(save_report(store, id, out)))


@trainer.callback(invoke_without_command=True)
def run_trainer(
    store: StoreUrl = DEFAULT_STORE,
    models: Annotated[
        list[str] | None,
        typer.Option(envvar="DREAMDROP_MODELS", help="name=folder of a base model; repeatable."),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            envvar="DREAMDROP_PROCESSES", min=1, help="Processes that train together, one a device."
        ),
    ] = 1,
    work: Annotated[
        Path | None,
        typer.Option(
            envvar="DREAMDROP_WORK", help="Folder for inputs and checkpoints; default a temporary one."
        ),
    ] = None,
    model_cache_gb: ModelCacheGb = 50,
    lease: Lease = 30.0,
    max_attempts: MaxAttempts = 3,
    patience: Annotated[
        float, typer.Option(min=1, help="Seconds without progress after which an attempt is ended.")
    ] = 1800.0,
    grace: Annotated[
        float, typer.Option(envvar="DREAMDROP_GRACE", help="Seconds to save a checkpoint after SIGTERM.")
    ] = 100.0,
    report_to: ReportTo = None,
    logging_dir: LoggingDir = None,
    once: Once = False,
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
) -> None:
    """Run the trainings of a store.

    It takes what is dropped as trainings/<id>.json, one at a time.
    """
    from infra.claims.claims import Timing
    from infra.logs import log_lines
    from training.lease.base_models import BaseModels
    from training.lease.serve import serve
    from training.lease.trainer import TrainerSettings

    log_lines(log_level, "training", "infra", "dreamdrop", style=log_format)
    beat = lease / 3
    settings = TrainerSettings(
        timing=Timing(beat=beat, lease=lease, sweep=(beat, 2 * beat), max_attempts=max_attempts),
        work=work or Path(tempfile.gettempdir()),
        patience=patience,
        grace=grace,
        processes=processes,
        logs=logs_of(report_to, logging_dir),
        once=once,
    )
    try:
        bases = BaseModels.of(models or (), int(model_cache_gb * 2**30))
        status = asyncio.run(serve(store, bases, settings, (metrics_host, metrics_port)))
    except (DreamError, OSError) as error:
        logging.getLogger("dreamdrop.trainer").error("the trainer cannot run: %s", error)
        raise typer.Exit(3) from error
    raise typer.Exit(status)


def _run(work: object) -> object:
    """Run a command's work; an error of this project ends as one line, by the root of the command line."""
    return asyncio.run(work)  # type: ignore[arg-type]
