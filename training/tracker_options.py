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
    Path, typer.Option(metavar="FOLDER", help="Where --report-to writes, into a folder of the training's id.")
]
LOGS = Path("logs")
