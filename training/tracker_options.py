"""`--report-to` and `--logging-dir`, of the commands that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from schemas.errors import Rejected


def _known(tracker: str | None) -> str | None:
    if tracker is None:
        return None
    if tracker != "tensorboard":
        raise typer.BadParameter(
            f"{tracker!r} is not supported; use tensorboard. Trackers on other machines need credentials, and the "
            "process that trains has none"
        )
    from training.checks import require_tensorboard

    try:
        require_tensorboard("--report-to")
    except Rejected as error:
        raise typer.BadParameter(error.message) from error
    return tracker


ReportTo = Annotated[
    str | None,
    typer.Option(
        metavar="tensorboard",
        callback=_known,
        help="Write loss curves and validation pictures for TensorBoard.",
    ),
]
LoggingDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where --report-to writes, into a folder of the training's id; default: logs.",
    ),
]


def logs_of(report_to: str | None, logging_dir: Path | None) -> Path | None:
    """The folder that curves are written to; None for none. Raises `BadParameter` for a folder without a tracker."""
    if report_to is None and logging_dir is not None:
        text = "goes with --report-to tensorboard, without which nothing is written there; give both, or leave it out"
        raise typer.BadParameter(text, param_hint="--logging-dir")
    return (logging_dir or Path("logs")) if report_to else None
